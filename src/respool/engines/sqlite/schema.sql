-- One file holds the log and the state. Positions are log << 40 | offset.

CREATE TABLE stream (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: state is keyed by it (H10)
    kind        TEXT NOT NULL,                      -- queue | stream
    app         TEXT NOT NULL,                      -- '' for streams
    name        TEXT NOT NULL,
    settings    TEXT NOT NULL,                      -- JSON
    created     REAL NOT NULL,
    UNIQUE (app, name, kind)
);

CREATE TABLE log (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    stream      INTEGER NOT NULL REFERENCES stream,
    priority    INTEGER,                            -- of the lane, NULL for the common one
    partition   INTEGER NOT NULL,
    floor       INTEGER NOT NULL,                   -- no position below it is ever given out again (S5)
    UNIQUE (stream, priority, partition)
);

-- Records appended together are a run. Its first record, the head, carries the id and the time; the
-- others stand `seq` places after it, have the head's id plus seq, and cost no index entry. Heads whose id
-- was made when they were (`seq` NULL) are found in time by their id; the others (0: ids given, or derived
-- from a run) by an index of their own, so that the usual append writes one page less.
CREATE TABLE record (
    pos         INTEGER PRIMARY KEY,
    task        TEXT NOT NULL,                      -- the task of a call, the type of an event
    body        BLOB NOT NULL,
    meta        BLOB,                               -- msgpack of the attributes most records lack
    seq         INTEGER,
    id,                                             -- BLOB: made by us; TEXT: given, with its namespace
    time        INTEGER,                            -- microseconds since 1970
    key         INTEGER                             -- the hash of its key, where it has one
);
CREATE UNIQUE INDEX record_id ON record (id) WHERE id IS NOT NULL;
CREATE INDEX record_time ON record (pos >> 40, time) WHERE seq = 0;  -- time is not monotone in pos (H19)

CREATE TABLE grp (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    stream      INTEGER NOT NULL REFERENCES stream,
    app         TEXT NOT NULL,
    name        TEXT NOT NULL,
    kind        TEXT NOT NULL,                      -- main | subscription | replay | group
    settings    TEXT NOT NULL,                      -- JSON: tasks, since, until, outbox
    generation  INTEGER NOT NULL DEFAULT 0,
    created     REAL NOT NULL,
    UNIQUE (stream, app, name)
);

CREATE TABLE position (
    grp         INTEGER NOT NULL,
    log         INTEGER NOT NULL,
    cursor      INTEGER NOT NULL,
    start       INTEGER NOT NULL,
    stop        INTEGER,
    priority    INTEGER NOT NULL,                   -- of the log's lane, 4 for the common one
    PRIMARY KEY (grp, log)
) WITHOUT ROWID;

CREATE TABLE lease (  -- a few at a time: an index would cost each claim and settlement a page
    id          INTEGER PRIMARY KEY,                -- worker << 40 | child << 32 | count: unique for good
    grp         INTEGER NOT NULL,
    owner       INTEGER,                            -- worker; NULL: returned
    child       INTEGER NOT NULL,
    spans       BLOB NOT NULL,                      -- msgpack, in the order they are run
    bodies      BLOB,
    since       REAL NOT NULL,
    admitted    BLOB,                               -- what buckets let in, msgpack; NULL where no limit applies
    keys        BLOB                                -- of an ordered group: four bytes a record
);

CREATE TABLE parked (
    grp         INTEGER NOT NULL,
    pos         INTEGER NOT NULL,
    reason      TEXT NOT NULL,
    due         REAL,
    task        TEXT NOT NULL,
    retries     INTEGER NOT NULL,
    deliveries  INTEGER NOT NULL,
    redrives    INTEGER NOT NULL,
    alone       INTEGER NOT NULL,
    body        BLOB,
    error       BLOB,
    at          REAL NOT NULL,
    waits       INTEGER,                            -- limited: for which bucket
    key         INTEGER,                            -- of an ordered group; negative: it holds up nobody
    PRIMARY KEY (grp, pos)
) WITHOUT ROWID;
CREATE INDEX parked_waits ON parked (grp, waits, pos) WHERE waits IS NOT NULL;
CREATE INDEX parked_key ON parked (grp, key, pos) WHERE key > 0;
CREATE INDEX parked_blocked ON parked (grp, pos) WHERE reason = 'blocked';
CREATE INDEX parked_due ON parked (grp, pos >> 40, due) WHERE due IS NOT NULL;  -- by log: lanes have their turns
CREATE INDEX parked_reason ON parked (grp, reason, task) WHERE due IS NULL;
CREATE INDEX parked_dead ON parked (grp, task, at) WHERE reason = 'dead';  -- which have been so for too long

CREATE TABLE bucket (                               -- a limit of a task, a queue, or a key of theirs
    id          INTEGER PRIMARY KEY,                -- made of rule and key
    rule        TEXT NOT NULL,
    key         TEXT NOT NULL,
    rate        REAL,
    burst       REAL NOT NULL,
    slots       INTEGER,
    tokens      REAL NOT NULL,                      -- at the time `at`
    at          REAL NOT NULL
);

CREATE TABLE waiting (                              -- for which buckets records of a group wait
    grp         INTEGER NOT NULL,
    bucket      INTEGER NOT NULL,
    next        REAL,                               -- when it opens; NULL: when a slot is freed
    PRIMARY KEY (grp, bucket)
) WITHOUT ROWID;
CREATE INDEX waiting_next ON waiting (grp, next) WHERE next IS NOT NULL;
CREATE INDEX waiting_bucket ON waiting (bucket);

CREATE TABLE unique_lock (                          -- calls of which there is to be one at a time (H16)
    key         TEXT PRIMARY KEY,
    id          NOT NULL,                           -- of the record that took it
    pos         INTEGER NOT NULL,
    until       REAL
) WITHOUT ROWID;

-- A record and its lock, in one statement (H1), where the key is taken by what was `seen` there.
CREATE VIEW unique_call AS SELECT NULL AS log, NULL AS first, NULL AS last, NULL AS lease, NULL AS owner, NULL AS task,
    NULL AS body, NULL AS meta, NULL AS id, NULL AS time, NULL AS seq, NULL AS hash,  -- of the record's key
    NULL AS key, NULL AS seen, NULL AS until;
CREATE TRIGGER append_unique INSTEAD OF INSERT ON unique_call BEGIN
    SELECT RAISE(ABORT, 'lock taken') WHERE (SELECT id FROM unique_lock WHERE key = NEW.key) IS NOT NEW.seen;
    SELECT RAISE(ABORT, 'lease lost') WHERE NEW.lease IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM lease WHERE id = NEW.lease AND owner = NEW.owner);
    INSERT INTO record (pos, task, body, meta, id, time, seq, key)
    SELECT ifnull((SELECT max(floor, ifnull((SELECT max(pos) FROM record WHERE pos BETWEEN NEW.first AND NEW.last) + 1, 0))
                   FROM log WHERE id = NEW.log), 'no such log'),
           NEW.task, NEW.body, NEW.meta, NEW.id, NEW.time, NEW.seq, NEW.hash
    WHERE true ON CONFLICT (id) WHERE id IS NOT NULL DO NOTHING;
    INSERT INTO unique_lock (key, id, pos, until)
    SELECT NEW.key, NEW.id, pos, NEW.until FROM record WHERE id IS NOT NULL AND id = NEW.id
    ON CONFLICT (key) DO UPDATE SET id = excluded.id, pos = excluded.pos, until = excluded.until;
END;

CREATE TABLE once (                                 -- steps of calls that were done, for all groups that run them
    pos         INTEGER NOT NULL,
    step        TEXT NOT NULL,
    value       BLOB NOT NULL,
    at          REAL NOT NULL,
    grp         INTEGER NOT NULL DEFAULT 0,         -- of none: the record's own
    PRIMARY KEY (pos, step)
) WITHOUT ROWID;

CREATE TABLE outcome (
    grp         INTEGER NOT NULL,
    pos         INTEGER NOT NULL,
    ending      INTEGER NOT NULL,                   -- 0 success, 1 failure, 2 revoked
    value       BLOB,
    at          REAL NOT NULL,
    until       REAL,                               -- result_ttl; 0: the value is gone, the ending stands
    PRIMARY KEY (grp, pos)
) WITHOUT ROWID;
CREATE INDEX outcome_until ON outcome (until) WHERE until > 0;

CREATE TABLE progress (                             -- what running tasks said by update_state
    grp         INTEGER NOT NULL,
    pos         INTEGER NOT NULL,
    value       BLOB NOT NULL,
    PRIMARY KEY (grp, pos)
) WITHOUT ROWID;

CREATE TABLE journal (
    grp         INTEGER NOT NULL,
    lo          INTEGER NOT NULL,
    n           INTEGER NOT NULL,                   -- sets apart the entries with the same lo: a clock's ns
    hi          INTEGER NOT NULL,
    owner       INTEGER,
    child       INTEGER NOT NULL,
    started     REAL NOT NULL,
    ended       REAL NOT NULL,
    how         TEXT NOT NULL,
    retries     INTEGER NOT NULL,
    note        TEXT,
    PRIMARY KEY (grp, lo, n)
) WITHOUT ROWID;
CREATE INDEX journal_purged ON journal (grp, lo, hi) WHERE how = 'purged';  -- the only long ranges

CREATE TABLE counter (
    grp         INTEGER NOT NULL,
    name        TEXT NOT NULL,
    value       INTEGER NOT NULL,
    PRIMARY KEY (grp, name)
) WITHOUT ROWID;

CREATE TABLE worker (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    app         TEXT NOT NULL,
    name        TEXT NOT NULL,
    host        TEXT NOT NULL,
    boot        TEXT NOT NULL,
    pid         INTEGER NOT NULL,
    beat        INTEGER NOT NULL DEFAULT 0,
    started     REAL NOT NULL,
    beaten      REAL NOT NULL,
    draining    INTEGER NOT NULL DEFAULT 0,
    info        TEXT NOT NULL                       -- JSON
);

CREATE TABLE blob (                                 -- large payloads, kept in a blob store (H18)
    digest      BLOB NOT NULL,                      -- SHA-256
    stamp       INTEGER NOT NULL,                   -- tells apart what was stored under one digest over time
    size        INTEGER NOT NULL,
    touched     REAL NOT NULL,                      -- when it was last to be stored or referred to
    doomed      REAL,                               -- since when it is being removed, and takes no reference
    PRIMARY KEY (digest, stamp)
) WITHOUT ROWID;
CREATE UNIQUE INDEX blob_living ON blob (digest) WHERE doomed IS NULL;
CREATE INDEX blob_doomed ON blob (doomed) WHERE doomed IS NOT NULL;

CREATE TABLE blob_ref (
    digest      BLOB NOT NULL,
    stamp       INTEGER NOT NULL,
    pos         INTEGER NOT NULL,
    grp         INTEGER NOT NULL,                   -- whose outcome refers to it; 0: the record itself
    at          REAL NOT NULL,
    PRIMARY KEY (digest, stamp, pos, grp)
) WITHOUT ROWID;

-- A record and its reference in one statement: lock, both writes and sync in one call (H1). As `append_rows`;
-- first and last are the positions of the log. Where the payload was removed, nothing is written.
CREATE VIEW offloaded AS SELECT NULL AS log, NULL AS first, NULL AS last, NULL AS lease, NULL AS owner, NULL AS task,
    NULL AS body, NULL AS meta, NULL AS id, NULL AS time, NULL AS seq, NULL AS key,
    NULL AS digest, NULL AS stamp, NULL AS at;
CREATE TRIGGER append_offloaded INSTEAD OF INSERT ON offloaded BEGIN
    SELECT RAISE(ABORT, 'payload removed') WHERE NEW.digest IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM blob WHERE digest = NEW.digest AND stamp = NEW.stamp AND doomed IS NULL);
    INSERT INTO record (pos, task, body, meta, id, time, seq, key)
    SELECT ifnull((SELECT max(floor, ifnull((SELECT max(pos) FROM record WHERE pos BETWEEN NEW.first AND NEW.last) + 1, 0))
                   FROM log WHERE id = NEW.log), 'no such log'),
           NEW.task, NEW.body, NEW.meta, NEW.id, NEW.time, NEW.seq, NEW.key
    WHERE NEW.lease IS NULL OR EXISTS (SELECT 1 FROM lease WHERE id = NEW.lease AND owner = NEW.owner)
    ON CONFLICT (id) WHERE id IS NOT NULL DO NOTHING;
    INSERT INTO blob_ref (digest, stamp, pos, grp, at)
    SELECT NEW.digest, NEW.stamp, pos, 0, NEW.at FROM record
    WHERE NEW.digest IS NOT NULL AND id IS NOT NULL AND id = NEW.id AND body = NEW.body
    ON CONFLICT DO NOTHING;
END;

CREATE TABLE move (                                 -- the transfer that this store takes part in, if any
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    mark        TEXT NOT NULL,                      -- JSON, the numbers that incoming streams got here included
    at          TEXT NOT NULL                       -- JSON: how far the target is, changed with each page
);
