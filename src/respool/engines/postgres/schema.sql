-- Log and state in one schema. Positions are log << 40 | offset. `respool.` stands for the schema's name.

CREATE SCHEMA IF NOT EXISTS respool;

CREATE TABLE respool.version (version integer NOT NULL, store uuid NOT NULL);  -- store: tells this one from any other

CREATE TABLE respool.stream (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- never used twice: state is keyed by it (H10)
    kind        text NOT NULL,                      -- queue | stream
    app         text NOT NULL,                      -- '' for streams
    name        text NOT NULL,
    settings    jsonb NOT NULL,
    created     double precision NOT NULL,
    UNIQUE (app, name, kind)
);

-- Each log has a sequence of its own, respool.log_<id>, that counts its positions (G1).
CREATE TABLE respool.log (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream      bigint NOT NULL REFERENCES respool.stream,
    priority    integer,                            -- of the lane, NULL for the common one
    partition   integer NOT NULL,
    floor       bigint NOT NULL DEFAULT 0           -- what lies below it was cut off
);
CREATE UNIQUE INDEX log_place ON respool.log (stream, coalesce(priority, -1), partition);

-- Records, outcomes and journal are partitioned by position, so that retention drops and never deletes (G6).
-- Records appended together are a run: ids count up from the first one's, and only that is in `ids`.
CREATE TABLE respool.record (
    pos         bigint NOT NULL,
    task        text NOT NULL,                      -- the task of a call, the type of an event
    body        bytea NOT NULL,
    meta        bytea,                              -- msgpack of the attributes most records lack
    seq         integer NOT NULL,                   -- its place in its run
    id          bytea NOT NULL,                     -- its head's: 16 bytes made by us; else 0xff and text
    time        bigint NOT NULL,                    -- microseconds since 1970
    key         integer,                            -- the hash of its key, where it has one
    PRIMARY KEY (pos)
) PARTITION BY RANGE (pos);
CREATE INDEX record_time ON respool.record USING brin (time) WITH (autosummarize = on, pages_per_range = 32);

-- A unique index on `record` would have to contain its partition's key.
CREATE TABLE respool.ids (
    id          bytea PRIMARY KEY,
    pos         bigint NOT NULL,
    last        bigint NOT NULL                     -- where the run ends; others may have come between
);
CREATE INDEX ids_pos ON respool.ids USING brin (pos) WITH (autosummarize = on, pages_per_range = 32);

CREATE TABLE respool.grp (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream      bigint NOT NULL REFERENCES respool.stream,
    app         text NOT NULL,
    name        text NOT NULL,
    kind        text NOT NULL,                      -- main | subscription | replay | group
    settings    jsonb NOT NULL,                     -- tasks, since, until, outbox
    generation  integer NOT NULL DEFAULT 0,
    created     double precision NOT NULL,
    UNIQUE (stream, app, name)
);

CREATE TABLE respool.position (
    grp         bigint NOT NULL,
    log         bigint NOT NULL,
    start       bigint NOT NULL,
    stop        bigint,
    priority    integer NOT NULL,                   -- of the log's lane, 4 for the common one
    PRIMARY KEY (grp, log)
);

-- The newest version holds. A row updated again and again bloats behind one open transaction (G5).
CREATE TABLE respool.cursor (
    grp         bigint NOT NULL,
    log         bigint NOT NULL,
    n           bigint GENERATED ALWAYS AS IDENTITY,
    cursor      bigint NOT NULL,
    PRIMARY KEY (grp, log, n)
);

-- Numbers that a group's cursor has passed before a record was to be seen there (G2, G4): void once every
-- transaction that ran then has ended, that is once no snapshot is older than `barrier`.
CREATE TABLE respool.gap (
    grp         bigint NOT NULL,
    lo          bigint NOT NULL,
    hi          bigint NOT NULL,
    barrier     xid8 NOT NULL,
    since       double precision NOT NULL,
    PRIMARY KEY (grp, lo)
);

CREATE TABLE respool.lease (
    id          bigint PRIMARY KEY,                 -- worker << 40 | child << 32 | count: unique for good
    grp         bigint NOT NULL,
    owner       bigint,                             -- worker; NULL: returned
    child       integer NOT NULL,
    spans       bytea NOT NULL,                     -- msgpack, in the order they are run
    bodies      bytea,
    since       double precision NOT NULL,
    admitted    bytea,                              -- what buckets let in, msgpack; NULL where no limit applies
    keys        bytea                               -- of an ordered group: four bytes a record
);
CREATE INDEX lease_grp ON respool.lease (grp, owner);
CREATE INDEX lease_returned ON respool.lease (grp, id) WHERE owner IS NULL OR owner = 0;  -- few, whatever bloats (G5)
CREATE INDEX lease_admitted ON respool.lease (id) WHERE admitted IS NOT NULL AND owner IS NOT NULL;  -- who has slots
CREATE SEQUENCE respool.lease_number;               -- of leases made of records that came late; negative ids

CREATE TABLE respool.parked (
    grp         bigint NOT NULL,
    pos         bigint NOT NULL,
    reason      text NOT NULL,
    due         double precision,
    task        text NOT NULL,
    retries     integer NOT NULL,
    deliveries  integer NOT NULL,
    redrives    integer NOT NULL,
    alone       boolean NOT NULL,
    body        bytea,
    error       bytea,
    at          double precision NOT NULL,
    waits       bigint,                             -- limited: for which bucket
    key         integer,                            -- of an ordered group; negative: it holds up nobody
    PRIMARY KEY (grp, pos)
);
CREATE INDEX parked_waits ON respool.parked (grp, waits, pos) WHERE waits IS NOT NULL;
CREATE INDEX parked_key ON respool.parked (grp, key, pos) WHERE key > 0;
CREATE INDEX parked_blocked ON respool.parked (grp, pos) WHERE reason = 'blocked';
CREATE INDEX parked_due ON respool.parked (grp, (pos >> 40), due) WHERE due IS NOT NULL;  -- by log: lanes have their turns
CREATE INDEX parked_reason ON respool.parked (grp, reason, task) WHERE due IS NULL;
CREATE INDEX parked_dead ON respool.parked (grp, task, at) WHERE reason = 'dead';  -- which have been so for too long

CREATE TABLE respool.bucket (                       -- a limit of a task, a queue, or a key of theirs
    id          bigint PRIMARY KEY,                 -- made of rule and key
    rule        text NOT NULL,
    key         text NOT NULL,
    rate        double precision,
    burst       double precision NOT NULL,
    slots       integer,
    tokens      double precision NOT NULL,          -- at the time `at`
    at          double precision NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE respool.waiting (                      -- for which buckets records of a group wait
    grp         bigint NOT NULL,
    bucket      bigint NOT NULL,
    next        double precision,                   -- when it opens; NULL: when a slot is freed
    PRIMARY KEY (grp, bucket)
) WITH (fillfactor = 50);
CREATE INDEX waiting_next ON respool.waiting (grp, next) WHERE next IS NOT NULL;
CREATE INDEX waiting_bucket ON respool.waiting (bucket);

CREATE TABLE respool.unique_lock (                  -- calls of which there is to be one at a time (H16)
    key         text PRIMARY KEY,
    id          bytea NOT NULL,                     -- of the record that took it
    pos         bigint,
    until       double precision
);

CREATE TABLE respool.once (                         -- steps of calls that were done, for all groups that run them
    pos         bigint NOT NULL,
    step        text NOT NULL,
    value       bytea NOT NULL,
    at          double precision NOT NULL,
    grp         bigint NOT NULL DEFAULT 0,          -- of none: the record's own
    PRIMARY KEY (pos, step)
);

-- What was parked when its partition was dropped (H15).
CREATE TABLE respool.kept (LIKE respool.record, PRIMARY KEY (pos));
CREATE INDEX kept_begins ON respool.kept (substring(meta FROM 1 FOR 48));  -- by id, where the log is kept elsewhere

CREATE TABLE respool.outcome (
    grp         bigint NOT NULL,
    pos         bigint NOT NULL,
    ending      smallint NOT NULL,                  -- 0 success, 1 failure, 2 revoked
    value       bytea,
    at          double precision NOT NULL,
    until       double precision,                   -- result_ttl; 0: the value is gone, the ending stands
    PRIMARY KEY (pos, grp)
) PARTITION BY RANGE (pos);
CREATE TABLE respool.outcome_rest PARTITION OF respool.outcome DEFAULT;  -- of what outlived its partition (H15)
CREATE INDEX outcome_until ON respool.outcome (until) WHERE until > 0;

CREATE TABLE respool.progress (                     -- what running tasks said by update_state
    grp         bigint NOT NULL,
    pos         bigint NOT NULL,
    value       bytea NOT NULL,
    PRIMARY KEY (grp, pos)
);

CREATE TABLE respool.journal (
    grp         bigint NOT NULL,
    lo          bigint NOT NULL,
    n           bigint NOT NULL,                    -- orders what ended at once: a clock's ns
    hi          bigint NOT NULL,
    owner       bigint,
    child       integer NOT NULL,
    started     double precision NOT NULL,
    ended       double precision NOT NULL,
    how         text NOT NULL,
    retries     integer NOT NULL,
    note        text
) PARTITION BY RANGE (lo);
CREATE TABLE respool.journal_rest PARTITION OF respool.journal DEFAULT;
CREATE INDEX journal_lo ON respool.journal (grp, lo);
CREATE INDEX journal_purged ON respool.journal (grp, lo, hi) WHERE how = 'purged';  -- the only long ranges

CREATE TABLE respool.counter (
    grp         bigint NOT NULL,
    name        text NOT NULL,
    value       bigint NOT NULL,
    PRIMARY KEY (grp, name)
);

CREATE TABLE respool.worker (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    app         text NOT NULL,
    name        text NOT NULL,
    host        text NOT NULL,
    boot        text NOT NULL,
    pid         integer NOT NULL,
    started     double precision NOT NULL
);

CREATE TABLE respool.beat (                         -- the newest holds, as of cursors (G5)
    worker      bigint NOT NULL REFERENCES respool.worker ON DELETE CASCADE,
    beat        bigint NOT NULL,
    beaten      double precision NOT NULL,
    draining    boolean NOT NULL,
    info        jsonb NOT NULL,
    PRIMARY KEY (worker, beat)
);

CREATE TABLE respool.blob (                         -- large payloads, kept in a blob store (H18)
    digest      bytea NOT NULL,                     -- SHA-256
    stamp       bigint NOT NULL,                    -- tells apart what was stored under one digest over time
    size        bigint NOT NULL,
    touched     double precision NOT NULL,          -- when it was last to be stored or referred to
    doomed      double precision,                   -- since when it is being removed, and takes no reference
    PRIMARY KEY (digest, stamp)
);
CREATE UNIQUE INDEX blob_living ON respool.blob (digest) WHERE doomed IS NULL;
CREATE INDEX blob_doomed ON respool.blob (doomed) WHERE doomed IS NOT NULL;

CREATE TABLE respool.blob_ref (
    digest      bytea NOT NULL,
    stamp       bigint NOT NULL,
    pos         bigint NOT NULL,
    grp         bigint NOT NULL,                    -- whose outcome refers to it; 0: the record itself
    at          double precision NOT NULL,
    PRIMARY KEY (digest, stamp, pos, grp)
);

CREATE TABLE respool.move (                         -- the transfer that this store takes part in, if any
    one         integer PRIMARY KEY CHECK (one = 1),
    mark        jsonb NOT NULL,                     -- the numbers that incoming streams got here included
    at          jsonb NOT NULL                      -- how far the target is, changed with each page
);

-- What a store that is moved answers to those who write to it: triggers made by `respool transfer` run these.
CREATE FUNCTION respool.refuse_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'RS001', MESSAGE = TG_ARGV[0];
END $$;

CREATE FUNCTION respool.refuse_claim() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM respool.lease WHERE id = NEW.id) THEN
        RETURN NEW;  -- what is left of one that is settled
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'RS001', MESSAGE = TG_ARGV[0];
END $$;

INSERT INTO respool.version VALUES (1, gen_random_uuid());
