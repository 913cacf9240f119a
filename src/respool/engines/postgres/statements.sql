-- Every statement the engine runs, by name. Values are bound; nothing of a user's is ever pasted in.
-- `respool.` stands for the schema's name. Many bytes are bound as a binary array (%b): as text they would take
-- twice the room, and three times the time.

-- Appending. An xid is taken before the number (G1): in a statement of its own, or in what comes first.

-- name: append_run
-- Few numbers are burnt: a head that is known takes none.
WITH own AS MATERIALIZED (SELECT pg_current_xact_id() AS xid),
numbered AS MATERIALIZED (
    SELECT (run.ord - 1)::integer AS seq, run.body, nextval(%(sequence)s::text::regclass) AS pos
    FROM own, unnest(%(bodies)b::bytea[]) WITH ORDINALITY AS run (body, ord)
    WHERE own.xid IS NOT NULL AND NOT EXISTS (SELECT 1 FROM respool.ids WHERE id = %(head)s)),
entered AS (
    INSERT INTO respool.ids (id, pos, last)
    SELECT %(head)s, min(pos), max(pos) FROM numbered HAVING count(*) > 0)
INSERT INTO respool.record (pos, task, body, meta, seq, id, time)
SELECT pos, %(task)s, body, %(meta)s, seq, %(head)s, %(time)s FROM numbered;

-- name: append_fresh
-- A record whose id was made for it: an error where it was sent before. One statement, one commit, one round trip:
-- it also rings, if somebody who may care is asleep by now (bells.py adds how).
WITH put AS (
    INSERT INTO respool.record (pos, task, body, meta, seq, id, time, key)
    VALUES (CASE WHEN pg_current_xact_id() IS NOT NULL THEN nextval(%(sequence)s::text::regclass) END,
            %(task)s, %(body)s, %(meta)s, 0, %(id)s, %(time)s, %(key)s)
    RETURNING pos)
INSERT INTO respool.ids (id, pos, last) SELECT %(id)s, pos, pos FROM put
RETURNING pos;

-- name: append_fresh_rows
-- The same of many, whose logs' sequences come as numbers.
WITH numbered AS MATERIALIZED (
    SELECT w.*, CASE WHEN pg_current_xact_id() IS NOT NULL THEN nextval(w.sequence::regclass) END AS pos
    FROM unnest(%(sequences)s::oid[], %(ids)b::bytea[], %(tasks)s::text[], %(bodies)b::bytea[], %(metas)b::bytea[],
                %(times)s::bigint[], %(keys)s::integer[]) AS w (sequence, id, task, body, meta, time, key)),
entered AS (INSERT INTO respool.ids (id, pos, last) SELECT id, pos, pos FROM numbered)
INSERT INTO respool.record (pos, task, body, meta, seq, id, time, key)
SELECT pos, task, body, meta, 0, id, time, key FROM numbered;

-- name: sequences
SELECT l.id, to_regclass('respool.log_' || l.id)::oid::bigint FROM respool.log l WHERE l.id = ANY (%s);

-- name: append_row
-- The same, bell and all, for an id that may be known: then nothing is appended, and no number burnt. Where an open
-- transaction has entered the same id, its end is waited for: for no longer than `patience`, if that is given.
WITH own AS MATERIALIZED (
    SELECT pg_current_xact_id() AS xid,
           CASE WHEN %(patience)s::text <> '' THEN set_config('lock_timeout', %(patience)s::text, true) END AS patience),
entered AS (
    INSERT INTO respool.ids (id, pos, last)
    SELECT %(id)s, numbered.pos, numbered.pos
    FROM (SELECT nextval(%(sequence)s::text::regclass) AS pos FROM own
          WHERE own.xid IS NOT NULL AND NOT EXISTS (SELECT 1 FROM respool.ids WHERE id = %(id)s)
          OFFSET 0) AS numbered
    ON CONFLICT (id) DO NOTHING
    RETURNING pos)
INSERT INTO respool.record (pos, task, body, meta, seq, id, time, key)
SELECT pos, %(task)s, %(body)s, %(meta)s, 0, %(id)s, %(time)s, %(key)s FROM entered
RETURNING pos;

-- name: append_rows
WITH own AS MATERIALIZED (
    SELECT pg_current_xact_id() AS xid,
           CASE WHEN %(patience)s::text <> '' THEN set_config('lock_timeout', %(patience)s::text, true) END AS patience),
wanted AS (
    SELECT * FROM unnest(%(ids)b::bytea[], %(tasks)s::text[], %(bodies)b::bytea[], %(metas)s::bytea[],
                         %(times)s::bigint[], %(keys)s::integer[])
    WITH ORDINALITY AS w (id, task, body, meta, time, key, ord)),
fresh AS (
    SELECT DISTINCT ON (id) * FROM wanted
    WHERE (SELECT pos FROM respool.ids WHERE ids.id = wanted.id) IS NULL
    ORDER BY id, ord),
numbered AS MATERIALIZED (
    SELECT fresh.*, nextval(%(sequence)s::text::regclass) AS pos
    FROM (SELECT fresh.* FROM fresh, own WHERE own.xid IS NOT NULL ORDER BY ord) AS fresh),
entered AS (
    INSERT INTO respool.ids (id, pos, last) SELECT id, pos, pos FROM numbered
    ON CONFLICT (id) DO NOTHING RETURNING id, pos)
INSERT INTO respool.record (pos, task, body, meta, seq, id, time, key)
SELECT n.pos, n.task, n.body, n.meta, 0, n.id, n.time, n.key FROM numbered n
WHERE (n.pos IN (SELECT pos FROM entered)) IS TRUE  -- hashed: a join of what looks like a few rows is quadratic
RETURNING pos, id;

-- name: hold_fence
-- Until the commit: nobody takes the lease away between the look and the append. Who only sends has no right to it.
SELECT 1 FROM respool.lease WHERE id = %s AND owner = %s FOR SHARE;

-- Reading

-- name: by_run_id
SELECT pos, last, id FROM respool.ids WHERE id <= %s AND id >= %s ORDER BY id DESC LIMIT 1;

-- name: by_id
SELECT pos FROM respool.ids WHERE id = %s;

-- name: by_id_there
-- The first of a run may be gone while another is kept, and its id with it.
SELECT i.pos FROM respool.ids i WHERE i.id = %s AND (i.pos = i.last
    OR EXISTS (SELECT 1 FROM respool.record r WHERE r.pos = i.pos)
    OR EXISTS (SELECT 1 FROM respool.kept k WHERE k.pos = i.pos));

-- name: member
SELECT pos FROM respool.record WHERE pos >= %(lo)s AND pos <= %(hi)s AND seq = %(seq)s AND id = %(id)s
UNION ALL
SELECT pos FROM respool.kept WHERE pos >= %(lo)s AND pos <= %(hi)s AND seq = %(seq)s AND id = %(id)s
ORDER BY pos LIMIT 1;

-- name: run_positions
SELECT pos FROM respool.record WHERE pos >= %s AND pos <= %s AND id = %s ORDER BY pos;

-- name: whole
SELECT pos, task, body, time FROM respool.record WHERE pos = ANY (%s)
UNION ALL SELECT pos, task, body, time FROM respool.kept WHERE pos = ANY (%s);

-- name: rows
SELECT pos, task, body, meta FROM respool.record WHERE pos >= %s AND pos < %s ORDER BY pos;

-- name: rows_kept
-- Of all spans at once: to ask for each would be a round trip for each dead letter that is given back.
SELECT k.pos, k.task, k.body, k.meta
FROM unnest(%s::bigint[], %s::bigint[]) AS span (lo, hi)
CROSS JOIN LATERAL (SELECT * FROM respool.kept WHERE pos >= span.lo AND pos < span.hi) k;

-- name: records
SELECT pos, task, body, meta, seq, id, time FROM respool.record WHERE pos >= %(lo)s AND pos < %(hi)s
UNION ALL
SELECT pos, task, body, meta, seq, id, time FROM respool.kept WHERE pos >= %(lo)s AND pos < %(hi)s
ORDER BY pos LIMIT %(limit)s;

-- name: first_within
-- Of the next `limit` records, which are looked at in their order: most windows begin at once.
SELECT pos FROM (SELECT pos, time FROM respool.record WHERE pos >= %(lo)s AND pos < %(hi)s ORDER BY pos LIMIT %(limit)s) r
WHERE time >= %(since)s AND time < %(until)s ORDER BY pos LIMIT 1;

-- name: last_within
SELECT pos FROM (SELECT pos, time FROM respool.record WHERE pos >= %(lo)s AND pos < %(hi)s ORDER BY pos DESC LIMIT %(limit)s) r
WHERE time >= %(since)s AND time < %(until)s ORDER BY pos DESC LIMIT 1;

-- name: ends_within
-- Of one partition, by the index on time. Without the OFFSET it would be read in the order of positions, from either end.
SELECT min(pos), max(pos) FROM (
    SELECT pos FROM respool.record
    WHERE pos >= %(lo)s AND pos < %(hi)s AND time >= %(since)s AND time < %(until)s OFFSET 0) r;

-- name: outside
SELECT pos FROM respool.record WHERE pos >= %s AND pos < %s AND NOT (time >= %s AND time < %s);

-- name: bounds
-- What is seen ends a log, not what its sequence has given out: a number may belong to a call yet to come.
SELECT l.id,
       greatest(l.floor, l.id << 40),
       greatest(l.floor, l.id << 40, coalesce((SELECT pos + 1 FROM respool.record
           WHERE pos >= l.id << 40 AND pos < (l.id + 1) << 40 ORDER BY pos DESC LIMIT 1), 0))
FROM respool.log l WHERE l.stream = %s ORDER BY l.id;

-- Streams, groups, workers

-- name: streams
SELECT s.id, s.kind, s.app, s.name, s.settings, s.created,
       ARRAY(SELECT l.id FROM respool.log l WHERE l.stream = s.id ORDER BY l.id),
       ARRAY(SELECT l.priority FROM respool.log l WHERE l.stream = s.id ORDER BY l.id)
FROM respool.stream s ORDER BY s.id;

-- name: stream
SELECT s.id, s.kind, s.app, s.name, s.settings, s.created,
       ARRAY(SELECT l.id FROM respool.log l WHERE l.stream = s.id ORDER BY l.id),
       ARRAY(SELECT l.priority FROM respool.log l WHERE l.stream = s.id ORDER BY l.id)
FROM respool.stream s WHERE s.kind = %s AND s.app = %s AND s.name = %s;

-- name: store
SELECT store FROM respool.version;

-- name: lock_registry
SELECT pg_advisory_xact_lock(%s, 0);

-- name: add_stream
INSERT INTO respool.stream (kind, app, name, settings, created) VALUES (%s, %s, %s, %s, %s) RETURNING id;

-- name: set_setting
UPDATE respool.stream SET settings = jsonb_set(settings, %s, %s) WHERE id = %s;

-- name: add_log
INSERT INTO respool.log (stream, partition, priority) VALUES (%s, %s, %s) RETURNING id;

-- name: set_floor
UPDATE respool.log SET floor = id << 40 WHERE id = %s;

-- name: groups
SELECT id, stream, app, name, kind, settings, generation, created FROM respool.grp ORDER BY id;

-- name: add_group
INSERT INTO respool.grp (stream, app, name, kind, settings, created) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (stream, app, name) DO NOTHING RETURNING id;

-- name: add_position
INSERT INTO respool.position (grp, log, start, stop, priority)
SELECT %s, id, %s, %s, coalesce(priority, 4) FROM respool.log WHERE id = %s;

-- name: add_positions
-- Of the logs that a stream got after its groups, or while they were made: read from 0, but by no replay (H10).
WITH new AS (
    INSERT INTO respool.position (grp, log, start, stop, priority)
    SELECT g.id, l.id, l.id << 40, CASE WHEN g.kind = 'replay' THEN l.id << 40 END, coalesce(l.priority, 4)
    FROM respool.grp g JOIN respool.log l ON l.stream = g.stream WHERE g.stream = %s
    ON CONFLICT DO NOTHING RETURNING grp, log, start)
INSERT INTO respool.cursor (grp, log, cursor) SELECT grp, log, start FROM new;

-- name: add_cursor
INSERT INTO respool.cursor (grp, log, cursor) VALUES (%s, %s, %s);

-- name: old_cursors
-- In slices: dead versions cannot be removed behind an open transaction, but need not be looked at either: what
-- lies below `begins` was deleted. Returns where to begin from now on.
WITH place AS MATERIALIZED (
    SELECT p.grp, p.log, coalesce(known.begins, 0) AS begins, newest.n FROM respool.position p
    LEFT JOIN unnest(%(grps)s::bigint[], %(logs)s::bigint[], %(begins)s::bigint[]) AS known (grp, log, begins)
        ON known.grp = p.grp AND known.log = p.log
    CROSS JOIN LATERAL (SELECT n FROM respool.cursor WHERE grp = p.grp AND log = p.log ORDER BY n DESC LIMIT 1) newest
    WHERE newest.n > coalesce(known.begins, 0)),
old AS MATERIALIZED (
    SELECT c.* FROM place
    CROSS JOIN LATERAL (SELECT grp, log, n, ctid AS tid FROM respool.cursor c
        WHERE c.grp = place.grp AND c.log = place.log AND c.n >= place.begins AND c.n < place.n
        ORDER BY c.n LIMIT %(limit)s) c),
gone AS (DELETE FROM respool.cursor WHERE ctid = ANY (ARRAY(SELECT tid FROM old)))
SELECT p.grp, p.log, CASE WHEN count(old.n) < %(limit)s THEN p.n ELSE max(old.n) + 1 END
FROM place p LEFT JOIN old ON old.grp = p.grp AND old.log = p.log GROUP BY p.grp, p.log, p.n;

-- name: old_beats
-- As `old_cursors`.
WITH place AS MATERIALIZED (
    SELECT w.id, coalesce(known.begins, 0) AS begins, newest.beat FROM respool.worker w
    LEFT JOIN unnest(%(workers)s::bigint[], %(begins)s::bigint[]) AS known (worker, begins) ON known.worker = w.id
    CROSS JOIN LATERAL (SELECT beat FROM respool.beat WHERE worker = w.id ORDER BY beat DESC LIMIT 1) newest
    WHERE newest.beat > coalesce(known.begins, 0)),
old AS MATERIALIZED (
    SELECT o.* FROM place
    CROSS JOIN LATERAL (SELECT worker, beat, ctid AS tid FROM respool.beat o
        WHERE o.worker = place.id AND o.beat >= place.begins AND o.beat < place.beat
        ORDER BY o.beat LIMIT %(limit)s) o),
gone AS (DELETE FROM respool.beat WHERE ctid = ANY (ARRAY(SELECT tid FROM old)))
SELECT p.id, CASE WHEN count(old.beat) < %(limit)s THEN p.beat ELSE max(old.beat) + 1 END
FROM place p LEFT JOIN old ON old.worker = p.id GROUP BY p.id, p.beat;

-- name: drop_group
DELETE FROM respool.grp WHERE id = %s;

-- name: add_worker
INSERT INTO respool.worker (app, name, host, boot, pid, started) VALUES (%s, %s, %s, %s, %s, %s) RETURNING id;

-- name: first_beat
INSERT INTO respool.beat (worker, beat, beaten, draining, info) VALUES (%s, 0, %s, false, %s);

-- name: beat
-- One that its worker gave up may still hang in its commit, and has the same number: it is waited for, and changed.
INSERT INTO respool.beat (worker, beat, beaten, draining, info)
SELECT w.id, 1 + (SELECT beat FROM respool.beat b WHERE b.worker = w.id ORDER BY beat DESC LIMIT 1), %s, %s, %s
FROM respool.worker w WHERE w.id = %s FOR KEY SHARE OF w
ON CONFLICT (worker, beat) DO UPDATE
SET beaten = excluded.beaten, draining = excluded.draining, info = excluded.info
RETURNING beat;

-- name: workers
SELECT w.id, w.app, w.name, w.host, w.boot, w.pid, b.beat, w.started, b.beaten, b.draining, b.info
FROM respool.worker w
CROSS JOIN LATERAL (SELECT * FROM respool.beat WHERE worker = w.id ORDER BY beat DESC LIMIT 1) b
ORDER BY w.id;

-- name: drop_worker
DELETE FROM respool.worker WHERE id = %s;

-- A group's transaction: the lock, which takes no xid; all reads; then the xid as barrier; then the writes (G3).

-- name: begin
-- Whoever stops in the middle, with the lock, is stopped by the server (G7): so the settings come first.
SELECT CASE WHEN set_config('lock_timeout', %(patience)s, true) <> ''
             AND set_config('idle_in_transaction_session_timeout', %(patience)s, true) <> ''
             AND set_config('synchronous_commit', %(commit)s, true) <> ''
       THEN pg_advisory_xact_lock(%(locks)s, %(grp)s::integer) END;

-- A run's own transaction, which its settlement joins

-- name: begin_work
-- A setting of this transaction only, by which a COMMIT of the task's own is found out.
SELECT set_config('respool_run.lease', %s, true), EXISTS (SELECT 1 FROM respool.lease WHERE id = %s AND owner = %s);

-- name: work_of
SELECT current_setting('respool_run.lease', true);

-- name: lock_patience
SELECT set_config('lock_timeout', %s, true);

-- name: work_settings
SELECT set_config('lock_timeout', %s, true), set_config('idle_in_transaction_session_timeout', %s, true);

-- name: lock_group
SELECT pg_advisory_xact_lock(%s, %s::integer);

-- name: claimable
-- What is to be seen of each log from the cursor on, as ranges without holes.
SELECT p.log, c.cursor, p.stop, seen.lo, seen.hi, p.priority, nullif(g.settings, '{}'), g.generation
FROM respool.position p
JOIN respool.grp g ON g.id = p.grp
CROSS JOIN LATERAL (SELECT cursor FROM respool.cursor WHERE grp = p.grp AND log = p.log ORDER BY n DESC LIMIT 1) c
LEFT JOIN LATERAL (
    SELECT min(pos) AS lo, max(pos) + 1 AS hi
    FROM (SELECT pos, pos - row_number() OVER (ORDER BY pos) AS island
          FROM (SELECT pos FROM respool.record
                WHERE pos >= c.cursor AND pos < least(p.stop, (p.log + 1) << 40)
                ORDER BY pos LIMIT %(want)s) AS next) AS numbered
    GROUP BY island) AS seen ON true
WHERE p.grp = %(grp)s ORDER BY p.log, seen.lo;

-- name: group_settings
SELECT settings, generation FROM respool.grp WHERE id = %s;

-- name: set_settings
UPDATE respool.grp SET settings = (settings || %(set)s::jsonb) - %(gone)s::text[] WHERE id = %(grp)s;

-- name: set_generation
UPDATE respool.grp SET generation = %s WHERE id = %s;

-- name: lower_start
UPDATE respool.position SET start = least(start, %s) WHERE grp = %s AND log = %s;

-- A group that is moved back: what is known of lo <= pos < hi becomes history. Entries of the journal that end a
-- record say so no more; one that begins below lo is split there. The numbers of gaps are asked for again.

-- name: rewind_parked
DELETE FROM respool.parked WHERE grp = %(grp)s AND pos >= %(lo)s AND pos < %(hi)s;

-- name: rewind_outcomes
DELETE FROM respool.outcome WHERE grp = %(grp)s AND pos >= %(lo)s AND pos < %(hi)s;

-- name: rewind_progress
DELETE FROM respool.progress WHERE grp = %(grp)s AND pos >= %(lo)s AND pos < %(hi)s;

-- name: rewind_split
WITH reaching AS MATERIALIZED (
    SELECT * FROM respool.journal
    WHERE grp = %(grp)s AND lo < %(lo)s AND hi > %(lo)s
    AND (lo > %(low)s OR (lo >= %(first)s AND how = 'purged'))
    AND how NOT IN ('rewound', 'retry', 'scheduled', 'redriven', 'lost', 'unknown', 'blocked', 'limited', 'returned')),
cut AS (
    UPDATE respool.journal j SET hi = %(lo)s FROM reaching r WHERE j.grp = r.grp AND j.lo = r.lo AND j.n = r.n)
INSERT INTO respool.journal (grp, lo, n, hi, owner, child, started, ended, how, retries, note)
SELECT grp, %(lo)s, n, hi, owner, child, started, ended, 'rewound', retries,
       coalesce(note, how) || ', before it was rewound'
FROM reaching;

-- name: rewind_journal
UPDATE respool.journal SET how = 'rewound', note = coalesce(note, how) || ', before it was rewound'
WHERE grp = %(grp)s AND lo >= %(lo)s AND lo < %(hi)s
AND how NOT IN ('rewound', 'retry', 'scheduled', 'redriven', 'lost', 'unknown', 'blocked', 'limited', 'returned');

-- name: forget_gaps
DELETE FROM respool.gap WHERE grp = %(grp)s AND lo >= %(pos)s AND lo < %(end)s;

-- name: cut_gaps
UPDATE respool.gap SET hi = %(pos)s WHERE grp = %(grp)s AND lo < %(pos)s AND hi > %(pos)s;

-- name: positions
SELECT p.log, c.cursor,
       coalesce((SELECT pos + 1 FROM respool.record WHERE pos >= p.log << 40 AND pos < (p.log + 1) << 40
                 ORDER BY pos DESC LIMIT 1), c.cursor),
       p.stop, p.priority
FROM respool.position p
CROSS JOIN LATERAL (SELECT cursor FROM respool.cursor WHERE grp = p.grp AND log = p.log ORDER BY n DESC LIMIT 1) c
WHERE p.grp = %s ORDER BY p.log;

-- name: numbers
-- The same, but that what a sequence has given out ends a log: no record is looked at, and no partition.
SELECT p.log, c.cursor,
       greatest(c.cursor, pg_sequence_last_value(to_regclass('respool.log_' || p.log)) + 1),
       p.stop, p.priority
FROM respool.position p
CROSS JOIN LATERAL (SELECT cursor FROM respool.cursor WHERE grp = p.grp AND log = p.log ORDER BY n DESC LIMIT 1) c
WHERE p.grp = %s ORDER BY p.log;

-- name: oldest_writer
-- A long transaction that has appended nothing is not to keep gaps open (G4). An INSERT locks the table before
-- it takes its number, and its xid too (G1): of those that are older than a gap, only such as hold that lock can
-- still fill it. Asked before the gaps, whose snapshot must be the later one: who has ended by now is seen then.
-- It looks at all locks of the server: only where a gap has been there for a while. How many gaps there are, besides. A lock names the lower half
-- of an xid; the upper half is that of the latest xid, or next to it.
SELECT set_config('respool_gap.oldest', CASE WHEN EXISTS (
        SELECT 1 FROM respool.gap
        WHERE grp = %(grp)s AND since < %(before)s AND barrier > pg_snapshot_xmin(pg_current_snapshot()))
    THEN (
        WITH held AS MATERIALIZED (SELECT * FROM pg_locks WHERE granted),
        latest AS (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xid)
        SELECT least(min(latest.xid - 2147483648
                         + mod(mod(own.transactionid::text::bigint - latest.xid, 4294967296) + 6442450944, 4294967296)),
                     max(latest.xid))::text
        FROM latest LEFT JOIN (held AS own JOIN held AS log ON log.virtualtransaction = own.virtualtransaction
            AND log.locktype = 'relation' AND log.mode = 'RowExclusiveLock'
            AND log.relation = 'respool.record'::regclass
            AND log.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
        ON own.locktype = 'transactionid' AND own.mode = 'ExclusiveLock')
    ELSE '0' END, true),
    (SELECT count(*) FROM respool.gap WHERE grp = %(grp)s);

-- name: gaps
-- Whether a number is there, and whether it can still come, is asked in one statement: of one snapshot (G4).
-- Those of which there is nothing to say are passed over, or 200 that stay open would hide all that follow.
SELECT g.lo, g.hi, now.closed,
       ARRAY(SELECT pos FROM respool.record WHERE pos >= g.lo AND pos < g.hi ORDER BY pos LIMIT %(limit)s)
FROM respool.gap g CROSS JOIN LATERAL (
    SELECT g.barrier <= greatest(pg_snapshot_xmin(pg_current_snapshot()),
                                 current_setting('respool_gap.oldest')::xid8) AS closed) AS now
WHERE g.grp = %(grp)s AND (now.closed OR (
    SELECT pos FROM respool.record WHERE pos >= g.lo AND pos < g.hi ORDER BY pos LIMIT 1) IS NOT NULL)
ORDER BY g.lo LIMIT %(ranges)s;

-- name: drop_gap
DELETE FROM respool.gap WHERE grp = %s AND lo = %s;

-- name: put_gap
INSERT INTO respool.gap (grp, lo, hi, barrier, since) VALUES (%s, %s, %s, pg_current_xact_id(), %s);

-- name: split_gap
INSERT INTO respool.gap (grp, lo, hi, barrier, since)
SELECT grp, new.lo, new.hi, barrier, since
FROM respool.gap, unnest(%(los)s::bigint[], %(his)s::bigint[]) AS new (lo, hi)
WHERE grp = %(grp)s AND gap.lo = %(lo)s
ON CONFLICT (grp, lo) DO UPDATE SET hi = excluded.hi;

-- name: lease_number
SELECT nextval('respool.lease_number');

-- name: lease
SELECT id, owner, child, spans, bodies, since, admitted, keys FROM respool.lease WHERE grp = %s AND id = ANY (%s);

-- name: lease_is
-- An error where a lease is not as it is known.
SELECT 1 / count(*) FROM respool.lease WHERE id = %s AND grp = %s AND owner = %s AND spans = %b;

-- name: returned
-- What waits for more comes last, or a few batches that form would hide what was given back.
SELECT id, owner, child, spans, bodies, since, admitted, keys FROM respool.lease
WHERE grp = %(grp)s AND (owner IS NULL OR owner = 0)
ORDER BY owner IS NOT NULL AND since > %(now)s, child < 0, CASE WHEN child < 0 THEN since ELSE id END
LIMIT greatest(%(most)s, (SELECT CASE WHEN min(priority) < max(priority) THEN %(lanes)s END
                          FROM respool.position WHERE grp = %(grp)s));

-- name: leases
SELECT id, owner, child, spans, bodies, since, admitted, keys FROM respool.lease WHERE grp = %s ORDER BY id;

-- name: leases_of_owner
SELECT grp, id, owner, child, spans, bodies, since, admitted, keys FROM respool.lease WHERE owner = %s ORDER BY id;

-- name: put_lease
INSERT INTO respool.lease (id, grp, owner, child, spans, bodies, since, admitted, keys) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, spans = excluded.spans, bodies = excluded.bodies,
    admitted = excluded.admitted, keys = excluded.keys;

-- name: drop_leases
DELETE FROM respool.lease WHERE id = ANY (%s);

-- name: due
-- Of each log so many: what is due in one hides nothing of another.
SELECT k.pos, k.reason, k.due, k.task, k.retries, k.deliveries, k.redrives, k.alone, k.body, k.error, k.at, k.waits, k.key
FROM respool.position p CROSS JOIN LATERAL (
    SELECT * FROM respool.parked WHERE grp = p.grp AND pos >> 40 = p.log AND due <= %(now)s
    ORDER BY due LIMIT %(want)s) k
WHERE p.grp = %(grp)s ORDER BY k.due;

-- name: unknown
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, key
FROM respool.parked WHERE grp = %s AND reason = 'unknown' AND due IS NULL AND task = ANY (%s) LIMIT %s;

-- Ordered groups: what is parked of a key holds it up, unless the key is negative.

-- name: keys_ahead
SELECT pos, key FROM respool.record WHERE pos >= %s AND pos < %s ORDER BY pos LIMIT %s;

-- name: keys_at
SELECT pos, key FROM respool.record WHERE pos = ANY (%s) AND key IS NOT NULL;

-- name: due_logs
SELECT p.log FROM respool.position p WHERE p.grp = %(grp)s AND EXISTS (
    SELECT 1 FROM respool.parked WHERE grp = p.grp AND pos >> 40 = p.log AND due <= %(now)s);

-- name: due_in_log
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, key
FROM respool.parked WHERE grp = %s AND pos >> 40 = %s AND due <= %s ORDER BY due LIMIT %s;

-- name: keyed
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, NULL::bytea, at, waits, key
FROM respool.parked WHERE grp = %s AND key > 0 LIMIT %s;

-- name: waiting
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, NULL::bytea, at, waits, key
FROM respool.parked WHERE grp = %s AND key > 0 AND key = ANY (%s::integer[]);

-- name: blocked
SELECT count(*) FROM (SELECT 1 FROM respool.parked
                      WHERE grp = %s AND pos >= %s AND pos < %s AND reason = 'blocked' LIMIT %s) b;

-- name: parked_at
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, key
FROM respool.parked WHERE grp = %s AND pos = ANY (%s);

-- name: parked_list
SELECT grp, pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, key
FROM respool.parked WHERE grp = ANY (%(groups)s)
AND (%(reasons)s::text[] IS NULL OR reason = ANY (%(reasons)s::text[]))
AND (%(tasks)s::text[] IS NULL OR task = ANY (%(tasks)s::text[]))
AND (%(positions)s::bigint[] IS NULL OR pos = ANY (%(positions)s::bigint[]))
AND (%(since)s::float8 IS NULL OR at >= %(since)s) AND (%(until)s::float8 IS NULL OR at < %(until)s)
ORDER BY at, pos LIMIT %(limit)s;

-- name: dead_before
SELECT pos FROM respool.parked WHERE grp = %s AND reason = 'dead' AND task = %s AND at < %s ORDER BY at LIMIT %s;

-- name: dead_tasks
-- Each is one step in the index, however many dead letters it has.
WITH RECURSIVE named (task) AS (
    SELECT min(task) FROM respool.parked WHERE grp = %(grp)s AND reason = 'dead'
    UNION ALL
    SELECT (SELECT min(task) FROM respool.parked WHERE grp = %(grp)s AND reason = 'dead' AND task > named.task)
    FROM named WHERE named.task IS NOT NULL)
SELECT task FROM named WHERE task IS NOT NULL;

-- name: parked_between
SELECT count(*) FROM respool.parked WHERE grp = %s AND pos >= %s AND pos < %s AND reason <> 'dead';

-- name: next_due
-- Or when a lease has waited long enough for more (owner 0: see delivery.model.WAITING).
SELECT least((SELECT min(k.due) FROM respool.position p CROSS JOIN LATERAL (
                  SELECT due FROM respool.parked WHERE grp = p.grp AND pos >> 40 = p.log AND due > asked.after
                  ORDER BY due LIMIT 1) k
              WHERE p.grp = asked.grp),
             (SELECT min(since) FROM respool.lease WHERE grp = asked.grp AND owner = 0 AND since > asked.after))
FROM (SELECT %s::bigint AS grp, %s::float8 AS after) AS asked;

-- name: put_parked
INSERT INTO respool.parked (grp, pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, key)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (grp, pos) DO UPDATE SET (reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, key) =
    (excluded.reason, excluded.due, excluded.task, excluded.retries, excluded.deliveries, excluded.redrives,
     excluded.alone, excluded.body, excluded.error, excluded.at, excluded.waits, excluded.key);

-- name: put_many_parked
INSERT INTO respool.parked (grp, pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, key)
SELECT %s, new.* FROM unnest(%s::bigint[], %s::text[], %s::float8[], %s::text[], %s::integer[], %s::integer[],
    %s::integer[], %s::boolean[], %s::bytea[], %s::bytea[], %s::float8[], %s::bigint[], %s::integer[]) AS new
ON CONFLICT (grp, pos) DO UPDATE SET (reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, key) =
    (excluded.reason, excluded.due, excluded.task, excluded.retries, excluded.deliveries, excluded.redrives,
     excluded.alone, excluded.body, excluded.error, excluded.at, excluded.waits, excluded.key);

-- Unique calls, and steps that were done

-- name: lock_of
SELECT key, id, pos, until FROM respool.unique_lock WHERE key = %s;

-- name: take_free_lock
-- `patience` as of `append_row`, here and in `take_lock`.
WITH own AS MATERIALIZED (
    SELECT CASE WHEN %(patience)s::text <> '' THEN set_config('lock_timeout', %(patience)s::text, true) END AS patience)
INSERT INTO respool.unique_lock (key, id, until)
SELECT %(key)s::text, %(id)s::bytea, %(until)s::float8 FROM own WHERE own.patience IS NULL OR own.patience <> ''
ON CONFLICT (key) DO NOTHING RETURNING key;

-- name: take_lock
WITH own AS MATERIALIZED (
    SELECT CASE WHEN %(patience)s::text <> '' THEN set_config('lock_timeout', %(patience)s::text, true) END AS patience)
UPDATE respool.unique_lock u SET id = %(id)s::bytea, until = %(until)s::float8 FROM own
WHERE (own.patience IS NULL OR own.patience <> '') AND u.key = %(key)s AND u.id = %(seen)s RETURNING u.key;

-- name: place_lock
UPDATE respool.unique_lock SET pos = (SELECT i.pos FROM respool.ids i WHERE i.id = %(id)s)
WHERE key = %(key)s RETURNING pos;

-- name: locks_after
-- With what tells whether the record has ended in `main`, but for leases. A dead letter may be given back.
SELECT u.key, u.pos, (u.until IS NULL OR u.until <= %(now)s) AND NOT EXISTS (
    SELECT 1 FROM respool.log l JOIN respool.grp g ON g.stream = l.stream AND g.kind = 'main'
    CROSS JOIN LATERAL (SELECT cursor FROM respool.cursor WHERE grp = g.id AND log = l.id ORDER BY n DESC LIMIT 1) c
    WHERE l.id = u.pos >> 40 AND (u.pos >= c.cursor
        OR EXISTS (SELECT 1 FROM respool.gap p WHERE p.grp = g.id AND p.lo <= u.pos AND p.hi > u.pos)
        OR EXISTS (SELECT 1 FROM respool.parked k WHERE k.grp = g.id AND k.pos = u.pos)))
FROM respool.unique_lock u WHERE u.key > %(after)s ORDER BY u.key LIMIT %(limit)s;

-- name: main_leases
SELECT spans FROM respool.lease l JOIN respool.grp g ON g.id = l.grp WHERE g.kind = 'main';

-- name: move_lock
UPDATE respool.unique_lock u SET pos = moved.now FROM (SELECT %s::text AS key, %s::bigint AS was, %s::bigint AS now) AS moved
WHERE u.key = moved.key AND u.pos = moved.was;

-- name: drop_locks
DELETE FROM respool.unique_lock u USING unnest(%s::text[], %s::bigint[]) AS gone (key, pos)
WHERE u.key = gone.key AND u.pos = gone.pos AND (u.until IS NULL OR u.until <= %s);

-- name: once
SELECT value FROM respool.once WHERE pos = %s AND step = %s;

-- name: put_once
INSERT INTO respool.once (pos, step, value, at) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING;

-- name: trim_once
DELETE FROM respool.once o WHERE o.pos >= %(lo)s AND o.pos < %(hi)s
AND NOT EXISTS (SELECT 1 FROM respool.kept k WHERE k.pos = o.pos);

-- name: drop_once
DELETE FROM respool.once WHERE pos = ANY (%s);

-- name: next_open
SELECT least((SELECT min(k.due) FROM respool.position p CROSS JOIN LATERAL (
                 SELECT due FROM respool.parked WHERE grp = p.grp AND pos >> 40 = p.log AND due > %(after)s
                 ORDER BY due LIMIT 1) k
              WHERE p.grp = %(grp)s),
             (SELECT min(since) FROM respool.lease WHERE grp = %(grp)s AND owner = 0 AND since > %(after)s),
             (SELECT min(next) FROM respool.waiting WHERE grp = %(grp)s AND next > %(after)s));

-- name: lock_limits
-- One for all: a bucket may be of several groups, and a decision changes many.
SELECT pg_advisory_xact_lock(%s, 0);

-- name: open_waiting
-- Of each lane the first: where there are none, of all.
WITH open AS MATERIALIZED (
    SELECT bucket, next FROM respool.waiting WHERE grp = %(grp)s AND next <= %(now)s ORDER BY next, bucket LIMIT %(open)s),
lane AS MATERIALIZED (
    SELECT min(log)::bigint << 40 AS lo, (max(log)::bigint + 1) << 40 AS hi
    FROM respool.position WHERE grp = %(grp)s GROUP BY priority)
SELECT o.bucket, p.* FROM open o LEFT JOIN LATERAL (
    SELECT w.* FROM lane CROSS JOIN LATERAL (
        SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, key
        FROM respool.parked WHERE grp = %(grp)s AND waits = o.bucket AND pos >= lane.lo AND pos < lane.hi
        ORDER BY pos LIMIT (SELECT (2 * %(due)s::bigint + count(*) - 1) / count(*) + 1 FROM open)) AS w) AS p ON true
ORDER BY o.next, o.bucket, p.pos;

-- name: limits
SELECT b.id, b.rule, b.key, b.rate, b.burst, b.slots, b.tokens, b.at,
       EXISTS (SELECT 1 FROM respool.waiting w WHERE w.grp = %(grp)s AND w.bucket = b.id)
FROM respool.bucket b WHERE b.id IN (
    SELECT unnest(%(ids)s::bigint[]) UNION (
        SELECT bucket FROM respool.waiting WHERE grp = %(grp)s AND next <= %(now)s ORDER BY next, bucket LIMIT %(open)s));

-- name: holders
SELECT id, admitted FROM respool.lease WHERE admitted IS NOT NULL AND owner IS NOT NULL;

-- name: buckets
SELECT id, rule, key, rate, burst, slots, tokens, at FROM respool.bucket WHERE id = ANY (%s);

-- name: put_buckets
-- The limit itself stays as the newest worker has declared it.
INSERT INTO respool.bucket (id, rule, key, rate, burst, slots, tokens, at)
SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::float8[], %s::float8[], %s::integer[], %s::float8[],
                     %s::float8[])
ON CONFLICT (id) DO UPDATE SET tokens = excluded.tokens, at = excluded.at;

-- name: refund
UPDATE respool.bucket SET tokens = least(burst, tokens + given.starts)
FROM unnest(%s::bigint[], %s::bigint[]) AS given (id, starts) WHERE bucket.id = given.id;

-- name: put_waiting
INSERT INTO respool.waiting (grp, bucket, next) SELECT %s, * FROM unnest(%s::bigint[], %s::float8[])
ON CONFLICT (grp, bucket) DO UPDATE SET next = excluded.next;

-- name: drop_waiting
DELETE FROM respool.waiting WHERE grp = %s AND bucket = ANY (%s);

-- name: slots_freed
UPDATE respool.waiting SET next = 0 WHERE bucket = ANY (%s) AND next IS NULL;

-- name: ring_waiting
-- Notify, where a flag of workers is up, those that serve groups of which records wait for one of these.
SELECT pg_notify(%s, 'log ' || waits.log) FROM (
    SELECT min(l.id) AS log
    FROM respool.waiting w JOIN respool.grp g ON g.id = w.grp JOIN respool.log l ON l.stream = g.stream
    WHERE w.bucket = ANY (%s) GROUP BY l.stream) AS waits
WHERE NOT (SELECT bool_and(pg_try_advisory_xact_lock_shared(%s, flag)) FROM generate_series(0, %s) AS flag);

-- name: open_buckets
UPDATE respool.waiting SET next = 0 WHERE bucket = ANY (%s);

-- name: open_all
UPDATE respool.waiting SET next = 0 WHERE next IS NULL RETURNING bucket;

-- name: waited_for
-- The next of these: whether for a slot, and how many slots there are.
SELECT w.bucket, w.next IS NULL, b.slots
FROM (SELECT bucket, next FROM respool.waiting WHERE bucket > %s ORDER BY bucket LIMIT %s) AS w
LEFT JOIN respool.bucket b ON b.id = w.bucket ORDER BY w.bucket;

-- name: declared
SELECT id FROM respool.bucket
WHERE rule = %(rule)s AND (rate, burst, slots) IS DISTINCT FROM (%(rate)s::float8, %(burst)s::float8, %(slots)s::integer);

-- name: declare
UPDATE respool.bucket SET rate = %(rate)s, burst = %(burst)s, slots = %(slots)s, tokens = least(tokens, %(burst)s)
WHERE id = ANY (%(ids)s);

-- name: unused_buckets
-- Full again, as if it had never been used; leases may still name some of them.
SELECT id FROM respool.bucket b
WHERE at < %(before)s AND (rate IS NULL OR tokens + (%(before)s - at) * rate >= burst)
AND NOT EXISTS (SELECT 1 FROM respool.waiting w WHERE w.bucket = b.id) LIMIT %(limit)s;

-- name: drop_buckets
DELETE FROM respool.bucket WHERE id = ANY (%s);

-- name: limited_count
SELECT count(*) FROM (SELECT 1 FROM respool.parked WHERE grp = %s AND waits IS NOT NULL LIMIT %s) AS these;

-- name: keep
-- Records of a log that is kept elsewhere, which park them.
INSERT INTO respool.kept (pos, task, body, meta, seq, id, time)
SELECT new.*, 0, '', 0 FROM unnest(%s::bigint[], %s::text[], %s::bytea[], %s::bytea[]) AS new
ON CONFLICT (pos) DO NOTHING;

-- name: drop_parked
DELETE FROM respool.parked WHERE grp = %s AND pos = ANY (%s);

-- name: parked_counts
SELECT reason, count(*) FROM respool.parked WHERE grp = %s GROUP BY reason;

-- name: put_outcome
INSERT INTO respool.outcome (grp, pos, ending, value, at, until) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (pos, grp) DO UPDATE SET (ending, value, at, until) =
    (excluded.ending, excluded.value, excluded.at, excluded.until);

-- name: put_many_outcomes
INSERT INTO respool.outcome (grp, pos, ending, value, at, until)
SELECT %s, new.* FROM unnest(%s::bigint[], %s::smallint[], %s::bytea[], %s::float8[], %s::float8[]) AS new
ON CONFLICT (pos, grp) DO UPDATE SET (ending, value, at, until) =
    (excluded.ending, excluded.value, excluded.at, excluded.until);

-- name: put_results
INSERT INTO respool.outcome (grp, pos, ending, value, at)
SELECT %s, returned.pos, 0, returned.value, %s FROM unnest(%s::bigint[], %b::bytea[]) AS returned (pos, value)
ON CONFLICT (pos, grp) DO UPDATE SET (ending, value, at, until) = (0, excluded.value, excluded.at, NULL);

-- name: outcomes
SELECT pos, ending, value, at, until FROM respool.outcome WHERE grp = %s AND pos >= %s AND pos < %s ORDER BY pos;

-- name: forget_outcomes
DELETE FROM respool.outcome WHERE grp = %s AND pos = ANY (%s);

-- name: has_expired
SELECT EXISTS (SELECT 1 FROM respool.outcome WHERE until > 0 AND until <= %s);

-- name: expire_outcomes
-- H9: the ending stays, so that nobody takes "no row" for "returned None".
UPDATE respool.outcome SET value = NULL, until = 0
WHERE (pos, grp) IN (SELECT pos, grp FROM respool.outcome WHERE until > 0 AND until <= %s LIMIT %s);

-- name: put_progress
INSERT INTO respool.progress (grp, pos, value)
SELECT %(grp)s, %(pos)s, %(value)s
WHERE %(lease)s::bigint IS NULL OR EXISTS (SELECT 1 FROM respool.lease WHERE id = %(lease)s AND owner = %(owner)s)
ON CONFLICT (grp, pos) DO UPDATE SET value = excluded.value;

-- name: progress
SELECT value FROM respool.progress WHERE grp = %s AND pos = %s;

-- name: drop_progress
DELETE FROM respool.progress WHERE grp = %s AND pos = ANY (%s);

-- name: put_journal
INSERT INTO respool.journal (grp, lo, n, hi, owner, child, started, ended, how, retries, note)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s);

-- name: is_in_journal
SELECT EXISTS (SELECT 1 FROM respool.journal WHERE grp = %(grp)s AND lo = %(lo)s AND hi = %(hi)s
    AND owner = %(owner)s AND child = %(child)s AND started = %(started)s AND ended = %(ended)s AND how = %(how)s);

-- name: put_many_entries
INSERT INTO respool.journal (grp, lo, n, hi, owner, child, started, ended, how, retries, note)
SELECT %s, new.* FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::integer[], %s::float8[],
    %s::float8[], %s::text[], %s::integer[], %s::text[]) AS new;

-- name: journal
-- Ranges are no longer than the largest lease, but for those of a purge.
SELECT lo, hi, owner, child, started, ended, how, retries, note FROM (
    SELECT * FROM respool.journal WHERE grp = %(grp)s AND lo <= %(pos)s AND lo > %(low)s AND hi > %(pos)s
    UNION ALL
    SELECT * FROM respool.journal WHERE grp = %(grp)s AND lo <= %(low)s AND lo >= %(first)s AND hi > %(pos)s AND how = 'purged'
) AS entries ORDER BY ended, n;

-- name: began
-- Each of these entries is of one record.
SELECT j.lo FROM unnest(%(los)s::bigint[], %(his)s::bigint[]) AS r (lo, hi) CROSS JOIN LATERAL (
    SELECT lo FROM respool.journal WHERE grp = %(grp)s AND lo >= r.lo AND lo < r.hi AND how IN ('lost', 'retry')) AS j;

-- name: add_count
INSERT INTO respool.counter (grp, name, value) VALUES (%s, %s, %s)
ON CONFLICT (grp, name) DO UPDATE SET value = counter.value + excluded.value;

-- name: counters
SELECT name, value FROM respool.counter WHERE grp = %s ORDER BY name;

-- name: place
-- What most of those who wait for a call need to know, in one statement and so of one moment.
SELECT c.cursor, p.start, p.stop,
       EXISTS (SELECT 1 FROM respool.parked k WHERE k.grp = p.grp AND k.pos = %(pos)s),
       EXISTS (SELECT 1 FROM respool.gap g WHERE g.grp = p.grp AND g.lo <= %(pos)s AND g.hi > %(pos)s),
       o.pos, o.ending, o.value, o.at, o.until
FROM respool.position p
CROSS JOIN LATERAL (SELECT cursor FROM respool.cursor WHERE grp = p.grp AND log = p.log ORDER BY n DESC LIMIT 1) c
LEFT JOIN respool.outcome o ON o.grp = p.grp AND o.pos = %(pos)s
WHERE p.grp = %(grp)s AND p.log = %(log)s;

-- name: may_have_work
-- Whether there is something for certain, how many gaps there are, and the logs of which numbers were given out
-- past the cursor: all that can be told without a look at records, of which every partition would be planned for.
SELECT held.no, NOT held.no AND (EXISTS (SELECT 1 FROM respool.position p CROSS JOIN LATERAL (
            SELECT 1 FROM respool.parked WHERE grp = p.grp AND pos >> 40 = p.log AND due <= %(now)s LIMIT 1) k
        WHERE p.grp = %(grp)s)
    OR EXISTS (SELECT 1 FROM respool.waiting WHERE grp = %(grp)s AND next <= %(now)s)
    OR EXISTS (SELECT 1 FROM respool.lease
               WHERE grp = %(grp)s AND (owner IS NULL OR (owner = 0 AND since <= %(now)s)))
    OR EXISTS (SELECT 1 FROM respool.gap  -- nothing to run, but the next claim makes it void
        WHERE grp = %(grp)s AND barrier <= pg_snapshot_xmin(pg_current_snapshot()))
    OR EXISTS (SELECT 1 FROM respool.parked WHERE grp = %(grp)s AND reason = 'unknown' AND due IS NULL
        AND task = ANY (%(tasks)s))),
    (SELECT count(*) FROM respool.gap WHERE grp = %(grp)s), ahead.cursor, ahead.stop
FROM (SELECT coalesce((SELECT settings ?| ARRAY['paused', 'seek'] FROM respool.grp WHERE id = %(grp)s), false) AS no) held
LEFT JOIN (
    SELECT c.cursor, least(p.stop, (p.log + 1) << 40) AS stop FROM respool.position p
    CROSS JOIN LATERAL (SELECT cursor FROM respool.cursor WHERE grp = p.grp AND log = p.log ORDER BY n DESC LIMIT 1) c
    WHERE p.grp = %(grp)s AND NOT coalesce(c.cursor >= p.stop, false)
    AND pg_sequence_last_value(to_regclass('respool.log_' || p.log)) >= c.cursor) ahead ON NOT held.no;

-- name: first_after
SELECT pos FROM respool.record WHERE pos >= %s AND pos < %s ORDER BY pos LIMIT 1;

-- name: gap_filled
SELECT EXISTS (SELECT 1 FROM respool.gap g
    CROSS JOIN LATERAL (SELECT pos FROM respool.record WHERE pos >= g.lo AND pos < g.hi ORDER BY pos LIMIT 1) r
    WHERE g.grp = %s);

-- name: gaps_kept
SELECT coalesce(sum(hi - lo), 0)::bigint, count(*), min(since) FROM respool.gap WHERE grp = %s;

-- name: gap_total
SELECT coalesce(sum(hi - lo), 0)::bigint FROM respool.gap WHERE grp = %s;

-- name: gaps_between
SELECT coalesce(sum(least(hi, %(hi)s) - greatest(lo, %(lo)s)), 0)::bigint FROM respool.gap
WHERE grp = %(grp)s AND lo < %(hi)s AND hi > %(lo)s;

-- name: count_between
SELECT count(*) FROM respool.record WHERE pos >= %s AND pos < %s;

-- name: time_at_or_after
SELECT time FROM respool.record WHERE pos >= %s AND pos < %s ORDER BY pos LIMIT 1;

-- Dropping a group

-- name: drop_group_position
DELETE FROM respool.position WHERE grp = %s;

-- name: drop_group_cursor
DELETE FROM respool.cursor WHERE grp = %s;

-- name: drop_group_gap
DELETE FROM respool.gap WHERE grp = %s;

-- name: drop_group_lease
DELETE FROM respool.lease WHERE grp = %s;

-- name: drop_group_waiting
DELETE FROM respool.waiting WHERE grp = %s;

-- name: drop_group_parked
DELETE FROM respool.parked WHERE grp = %s;

-- name: drop_group_outcome
DELETE FROM respool.outcome WHERE grp = %s;

-- name: note_dropped
-- What is left of the group goes slice by slice.
INSERT INTO respool.counter (grp, name, value) VALUES (%s, 'group dropped', %s) ON CONFLICT DO NOTHING;

-- name: dropped_group
SELECT d.grp, ARRAY(SELECT l.id FROM respool.log l WHERE l.stream = d.value ORDER BY l.id)
FROM respool.counter d WHERE d.name = 'group dropped' AND d.grp NOT IN (SELECT id FROM respool.grp) ORDER BY d.grp LIMIT 1;

-- name: first_of_parked
SELECT pos FROM respool.parked WHERE grp = %(grp)s AND pos >= %(lo)s AND pos < %(hi)s ORDER BY pos LIMIT 1;

-- name: drop_some_parked
DELETE FROM respool.parked WHERE grp = %(grp)s AND pos >= %(lo)s AND pos < %(hi)s;

-- name: first_of_outcome
SELECT pos FROM respool.outcome WHERE pos >= %(lo)s AND pos < %(hi)s ORDER BY pos LIMIT 1;

-- name: drop_some_outcome
DELETE FROM respool.outcome WHERE grp = %(grp)s AND pos >= %(lo)s AND pos < %(hi)s;

-- name: first_of_progress
SELECT pos FROM respool.progress WHERE grp = %(grp)s AND pos >= %(lo)s AND pos < %(hi)s ORDER BY pos LIMIT 1;

-- name: drop_some_progress
DELETE FROM respool.progress WHERE grp = %(grp)s AND pos >= %(lo)s AND pos < %(hi)s;

-- name: first_of_journal
SELECT lo FROM respool.journal WHERE grp = %(grp)s AND lo >= %(lo)s AND lo < %(hi)s ORDER BY lo LIMIT 1;

-- name: drop_some_journal
DELETE FROM respool.journal WHERE grp = %(grp)s AND lo >= %(lo)s AND lo < %(hi)s;

-- name: drop_group_progress
DELETE FROM respool.progress WHERE grp = %s;

-- name: drop_group_journal
DELETE FROM respool.journal WHERE grp = %s;

-- name: release
-- What is limited (child -1: see delivery.model.LIMITED) may be claimed.
UPDATE respool.lease SET since = 0 WHERE grp = %s AND owner = 0 AND child = -1;

-- name: drop_group_counter
DELETE FROM respool.counter WHERE grp = %s;

-- What commands and checks ask; none of it is on a worker's way.

-- name: tasks_between
SELECT task, count(*) FROM respool.record WHERE pos >= %s AND pos < %s AND time >= %s AND time < %s GROUP BY task;

-- name: briefs
-- Bodies longer than `most` bytes are left out, so that a page of large records fits in memory.
SELECT pos, task, length(body), CASE WHEN length(body) <= %(most)s THEN body END, meta, seq, id, time
FROM respool.record
WHERE pos >= %(lo)s AND pos < %(hi)s AND (%(task)s::text IS NULL OR task = %(task)s)
AND time >= %(since)s AND time < %(until)s
UNION ALL
SELECT pos, task, length(body), CASE WHEN length(body) <= %(most)s THEN body END, meta, seq, id, time
FROM respool.kept
WHERE pos >= %(lo)s AND pos < %(hi)s AND (%(task)s::text IS NULL OR task = %(task)s)
AND time >= %(since)s AND time < %(until)s
ORDER BY pos;

-- name: group_bounds
SELECT l.id, coalesce(p.start, l.id << 40), coalesce(c.cursor, l.id << 40), p.stop
FROM respool.grp g JOIN respool.log l ON l.stream = g.stream
LEFT JOIN respool.position p ON p.grp = g.id AND p.log = l.id
LEFT JOIN LATERAL (SELECT cursor FROM respool.cursor WHERE grp = p.grp AND log = p.log ORDER BY n DESC LIMIT 1) c ON true
WHERE g.id = %s ORDER BY l.id;

-- name: parked_after
SELECT pos, task FROM respool.parked WHERE grp = %(grp)s AND pos > %(after)s
AND (%(reasons)s::text[] IS NULL OR reason = ANY (%(reasons)s::text[]))
AND (%(tasks)s::text[] IS NULL OR task = ANY (%(tasks)s::text[]))
AND (%(positions)s::bigint[] IS NULL OR pos = ANY (%(positions)s::bigint[]))
AND (%(since)s::float8 IS NULL OR at >= %(since)s) AND (%(until)s::float8 IS NULL OR at < %(until)s)
ORDER BY pos LIMIT %(limit)s;

-- name: parked_page
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, key
FROM respool.parked WHERE grp = %(grp)s AND pos > %(after)s
AND (%(reasons)s::text[] IS NULL OR reason = ANY (%(reasons)s::text[]))
AND (%(tasks)s::text[] IS NULL OR task = ANY (%(tasks)s::text[]))
AND (%(positions)s::bigint[] IS NULL OR pos = ANY (%(positions)s::bigint[]))
AND (%(since)s::float8 IS NULL OR at >= %(since)s) AND (%(until)s::float8 IS NULL OR at < %(until)s)
ORDER BY pos LIMIT %(limit)s;

-- name: parked_within
-- Bodies and errors are left out: a page may hold ten thousand.
SELECT pos, reason, due, task, retries, deliveries, redrives, alone,
       CASE WHEN body IS NOT NULL THEN ''::bytea END, NULL::bytea, at, waits, key
FROM respool.parked WHERE grp = %s AND pos >= %s AND pos < %s
ORDER BY pos;

-- name: gaps_within
SELECT greatest(lo, %(lo)s), least(hi, %(hi)s), since FROM respool.gap
WHERE grp = %(grp)s AND lo < %(hi)s AND hi > %(lo)s ORDER BY lo;

-- name: outcomes_within
SELECT pos, ending, NULL::bytea, at, until FROM respool.outcome WHERE grp = %s AND pos >= %s AND pos < %s ORDER BY pos;

-- name: journal_within
SELECT lo, hi, how FROM (
    SELECT * FROM respool.journal WHERE grp = %(grp)s AND lo > %(low)s AND lo < %(hi)s AND hi > %(lo)s
    UNION ALL
    SELECT * FROM respool.journal
    WHERE grp = %(grp)s AND lo <= %(low)s AND lo >= %(first)s AND hi > %(lo)s AND how = 'purged'
) AS entries ORDER BY ended, n;

-- name: records_between
SELECT pos FROM respool.record WHERE pos >= %(lo)s AND pos < %(hi)s
UNION ALL SELECT pos FROM respool.kept WHERE pos >= %(lo)s AND pos < %(hi)s ORDER BY pos;

-- name: record_count
SELECT (SELECT count(*) FROM respool.record WHERE pos >= %(lo)s AND pos < %(hi)s)
     + (SELECT count(*) FROM respool.kept WHERE pos >= %(lo)s AND pos < %(hi)s);

-- name: first_between
SELECT pos FROM respool.record WHERE pos >= %s AND pos < %s ORDER BY pos LIMIT 1;

-- name: first_record
SELECT least((SELECT pos FROM respool.record WHERE pos >= %(lo)s AND pos < %(hi)s ORDER BY pos LIMIT 1),
             (SELECT pos FROM respool.kept WHERE pos >= %(lo)s AND pos < %(hi)s ORDER BY pos LIMIT 1));

-- name: last_between
SELECT pos FROM respool.record WHERE pos >= %s AND pos < %s ORDER BY pos DESC LIMIT 1;

-- name: all_logs
SELECT l.id, l.stream, l.floor, EXISTS (SELECT 1 FROM respool.stream s WHERE s.id = l.stream)
FROM respool.log l ORDER BY l.id;

-- name: stray_parked
-- Parked where the group has not been: outside its logs, below its start, at or above its cursor.
SELECT k.pos FROM respool.parked k JOIN respool.grp g ON g.id = k.grp
LEFT JOIN respool.log l ON l.id = k.pos >> 40 AND l.stream = g.stream
LEFT JOIN respool.position p ON p.grp = k.grp AND p.log = l.id
LEFT JOIN LATERAL (SELECT cursor FROM respool.cursor WHERE grp = p.grp AND log = p.log ORDER BY n DESC LIMIT 1) c ON true
WHERE k.grp = %s AND (l.id IS NULL OR k.pos < coalesce(p.start, l.id << 40)
                      OR k.pos >= coalesce(c.cursor, l.id << 40) OR k.pos >= p.stop)
ORDER BY k.pos LIMIT %s;

-- name: orphans
SELECT DISTINCT 'leases', grp FROM respool.lease WHERE grp NOT IN (SELECT id FROM respool.grp)
UNION SELECT 'parked records', grp FROM respool.parked WHERE grp NOT IN (SELECT id FROM respool.grp)
    AND grp NOT IN (SELECT grp FROM respool.counter WHERE name = 'group dropped')
UNION SELECT 'positions', grp FROM respool.position WHERE grp NOT IN (SELECT id FROM respool.grp);

-- name: worker_ids
SELECT id FROM respool.worker;

-- name: unknown_tasks
SELECT DISTINCT task FROM respool.parked WHERE grp = %s AND reason = 'unknown' AND due IS NULL;

-- Retention

-- name: half_full
-- The last number of each log that has come past the middle of its partition, or into one that is not there. Numbers,
-- not records: those that open transactions took, or that were rolled back, are seen by nobody.
SELECT n.last FROM (
    SELECT l.id, pg_sequence_last_value(to_regclass('respool.log_' || l.id)) AS last FROM respool.log l) AS n
WHERE n.last IS NOT NULL AND (n.last & %(half)s::bigint <> 0
    OR to_regclass('respool.record_' || n.id || '_' || ((n.last & ((1::bigint << 40) - 1)) >> 20)) IS NULL);

-- name: floor
SELECT floor FROM respool.log WHERE id = %s;

-- name: lock_floor
SELECT floor FROM respool.log WHERE id = %s FOR UPDATE;

-- name: raise_floor
UPDATE respool.log SET floor = %s WHERE id = %s;

-- name: byte_count
SELECT coalesce(sum(octet_length(body) + coalesce(octet_length(meta), 0)), 0)::bigint FROM respool.record
WHERE pos >= %s AND pos < %s;

-- name: cut_to
-- Where the next `limit` records end that are old; what no group has read yet; the first gap of any group.
-- Those from a clock that was ahead are old if older ones follow, be it after all of these: nothing else tells
-- how old they are. Where it is our clock that is wrong, none follow.
WITH next AS MATERIALIZED (
    SELECT pos, time FROM respool.record WHERE pos >= %(lo)s AND pos < %(hi)s ORDER BY pos LIMIT %(limit)s),
old AS MATERIALIZED (
    SELECT max(pos) AS last FROM next WHERE time < %(before)s
    AND pos < coalesce((SELECT min(pos) FROM next WHERE time >= %(before)s AND time <= %(now)s), %(hi)s)),
aged AS MATERIALIZED (
    SELECT CASE
        WHEN last IS NOT NULL THEN last + 1
        WHEN NOT EXISTS (SELECT 1 FROM next WHERE time <= %(now)s) AND (
            SELECT time < %(before)s FROM respool.record
            WHERE pos >= %(lo)s AND pos < least(%(hi)s, %(lo)s + %(far)s) AND time <= %(now)s
            ORDER BY pos LIMIT 1) THEN %(hi)s
        ELSE 0 END AS until FROM old)
SELECT (SELECT max(pos) + 1 FROM next WHERE pos < greatest(%(upto)s, (SELECT until FROM aged))),
       (SELECT min(c.cursor) FROM respool.grp g JOIN respool.position p ON p.grp = g.id AND p.log = %(log)s
        CROSS JOIN LATERAL (SELECT cursor FROM respool.cursor WHERE grp = p.grp AND log = p.log ORDER BY n DESC LIMIT 1) c
        WHERE g.stream = %(stream)s AND NOT coalesce(c.cursor >= p.stop, false)),
       (SELECT min(k.lo) FROM respool.gap k JOIN respool.grp g ON g.id = k.grp
        WHERE g.stream = %(stream)s AND k.lo >= %(lo)s AND k.lo < %(hi)s);

-- name: stream_leases
SELECT l.spans FROM respool.lease l JOIN respool.grp g ON g.id = l.grp WHERE g.stream = %s;

-- name: trim_ids
-- From the log's beginning: a run may have begun in a partition that is gone. What is kept keeps its id.
DELETE FROM respool.ids WHERE id IN (
    SELECT id FROM respool.ids WHERE pos >= %(first)s AND pos < %(end)s AND last < %(end)s
    AND NOT EXISTS (SELECT 1 FROM respool.kept k WHERE k.pos >= ids.pos AND k.pos <= ids.last AND k.id = ids.id)
    LIMIT %(limit)s);

-- name: lock_groups
SELECT pg_advisory_xact_lock(%s, id::integer) FROM (SELECT id FROM respool.grp WHERE stream = %s ORDER BY id) g;

-- name: keep_parked
-- Moved, not copied: until the partition is dropped, which may take a while, a copy would be read twice. What is
-- leased is seen at the same moment as what is parked.
WITH next AS MATERIALIZED (
    SELECT DISTINCT k.pos FROM respool.grp g
    CROSS JOIN unnest(%(los)s::bigint[], %(his)s::bigint[]) AS span (lo, hi)
    CROSS JOIN LATERAL (
        SELECT p.pos FROM respool.parked p WHERE p.grp = g.id AND p.pos >= span.lo AND p.pos < span.hi
        ORDER BY p.pos LIMIT %(limit)s) k
    WHERE g.stream = %(stream)s ORDER BY k.pos LIMIT %(limit)s),
moved AS (
    DELETE FROM respool.record WHERE pos >= %(lo)s AND pos < %(hi)s AND pos = ANY (ARRAY(SELECT pos FROM next))
    RETURNING *),
put AS (INSERT INTO respool.kept SELECT * FROM moved ON CONFLICT (pos) DO NOTHING)
SELECT (SELECT count(*) FROM moved), (SELECT max(pos) FROM next),
       ARRAY(SELECT l.spans FROM respool.lease l JOIN respool.grp g ON g.id = l.grp WHERE g.stream = %(stream)s);

-- name: keep_outcomes
INSERT INTO respool.outcome SELECT o.* FROM respool_detached o
WHERE o.pos >= %(lo)s AND o.pos < %(hi)s AND EXISTS (SELECT 1 FROM respool.kept k WHERE k.pos = o.pos);

-- name: keep_journal
-- What is kept comes as one value, in which each entry finds its place: a look for each would be as long as both.
-- Where nothing is, no entry is looked at but those that reach into the next partition.
INSERT INTO respool.journal
SELECT j.* FROM respool_detached j
WHERE (SELECT EXISTS (SELECT 1 FROM respool.kept k WHERE k.pos >= %(lo)s AND k.pos < %(hi)s))
AND j.hi <= %(hi)s AND int8range(j.lo, greatest(j.lo, j.hi)) && (
    SELECT range_agg(int8range(k.pos, k.pos + 1)) FROM respool.kept k WHERE k.pos >= %(lo)s AND k.pos < %(hi)s)
UNION ALL
SELECT j.* FROM respool.grp g JOIN respool_detached j ON j.grp = g.id AND j.lo > %(low)s AND j.hi > %(hi)s AND j.how <> 'purged'
UNION ALL
SELECT j.* FROM respool_detached j WHERE j.how = 'purged' AND j.hi > %(hi)s;

-- name: trim_journal
-- What outlived its partition and says nothing any more of a record that is there.
DELETE FROM respool.journal_rest j WHERE j.lo >= %(first)s AND j.hi <= %(end)s
AND NOT coalesce(int8range(j.lo, greatest(j.lo, j.hi)) && (
    SELECT range_agg(int8range(k.pos, k.pos + 1)) FROM respool.kept k WHERE k.pos >= %(first)s AND k.pos < %(end)s), false);

-- name: trim_outcomes
-- Of positions that have no partition of their own.
DELETE FROM respool.outcome_rest WHERE (pos, grp) IN (
    SELECT o.pos, o.grp FROM respool.outcome_rest o WHERE o.pos >= %(lo)s AND o.pos < %(hi)s
    AND NOT EXISTS (SELECT 1 FROM respool.kept k WHERE k.pos = o.pos) LIMIT %(limit)s);

-- name: kept_for_nobody
SELECT k.pos FROM respool.kept k WHERE k.pos >= %s AND k.pos < %s AND NOT EXISTS (
    SELECT 1 FROM respool.parked p JOIN respool.grp g ON g.id = p.grp WHERE p.pos = k.pos AND g.stream = %s)
LIMIT 1000;

-- name: kept_by_beginning
SELECT pos FROM respool.kept WHERE substring(meta FROM 1 FOR 48) >= %(least)s AND substring(meta FROM 1 FOR 48) <= %(above)s
AND substring(meta FROM 1 FOR length(%(begins)s)) = %(begins)s LIMIT 1;

-- name: forget_kept
-- Of a log that is kept elsewhere: what else is known of these records stays.
DELETE FROM respool.kept WHERE pos = ANY (%s);

-- name: drop_kept
-- The id of a run goes with the last of its members that is there.
WITH gone AS (DELETE FROM respool.kept WHERE pos = ANY (%(gone)s) RETURNING pos, id),
ids AS (
    DELETE FROM respool.ids i WHERE i.id IN (SELECT id FROM gone)
    AND NOT EXISTS (SELECT 1 FROM respool.kept k WHERE k.pos >= i.pos AND k.pos <= i.last AND k.id = i.id
                    AND k.pos <> ALL (%(gone)s))
    AND NOT EXISTS (SELECT 1 FROM respool.record r WHERE r.pos >= i.pos AND r.pos <= i.last AND r.id = i.id))
DELETE FROM respool.outcome o USING gone WHERE o.pos = gone.pos;

-- Blobs (H18). Who refers to one holds a share of its row until the commit, and who dooms it takes all of it.

-- name: touch_blob
INSERT INTO respool.blob (digest, stamp, size, touched) VALUES (%s, %s, %s, %s)
ON CONFLICT (digest) WHERE doomed IS NULL DO UPDATE SET touched = greatest(blob.touched, excluded.touched)
RETURNING stamp;

-- name: hold_blobs
SELECT b.digest, b.stamp FROM respool.blob b
JOIN unnest(%(digests)s::bytea[], %(stamps)s::bigint[]) AS w (digest, stamp) USING (digest, stamp)
WHERE b.doomed IS NULL ORDER BY b.digest, b.stamp FOR KEY SHARE OF b;

-- name: sees_commits
-- Whether a statement sees what was committed since the transaction began.
SELECT current_setting('transaction_isolation') IN ('read committed', 'read uncommitted');

-- name: refer_to_blobs
-- From records, by their ids: of one that was there before as well, if it is the same. While a record is there
-- nobody drops its reference, so one that is known need not be touched: producers may not.
INSERT INTO respool.blob_ref (digest, stamp, pos, grp, at)
SELECT w.digest, w.stamp, r.pos, 0, %(now)s
FROM unnest(%(ids)s::bytea[], %(bodies)s::bytea[], %(digests)s::bytea[], %(stamps)s::bigint[])
    AS w (id, body, digest, stamp)
JOIN respool.ids i ON i.id = w.id JOIN respool.record r ON r.pos = i.pos AND r.body = w.body
ON CONFLICT (digest, stamp, pos, grp) DO NOTHING;

-- name: put_references
-- From outcomes of a group; 0: from edited bodies.
INSERT INTO respool.blob_ref (digest, stamp, pos, grp, at)
SELECT w.digest, w.stamp, w.pos, %(grp)s, %(now)s
FROM unnest(%(digests)s::bytea[], %(stamps)s::bigint[], %(places)s::bigint[]) AS w (digest, stamp, pos)
JOIN respool.blob b ON b.digest = w.digest AND b.stamp = w.stamp AND b.doomed IS NULL
ON CONFLICT (digest, stamp, pos, grp) DO UPDATE SET at = excluded.at;

-- name: references
-- The next ones; what is not needed for itself: that is below its floor, or gone, and parked nowhere.
SELECT r.digest, r.stamp, r.pos, r.grp, r.at < %(before)s
    AND NOT EXISTS (SELECT 1 FROM respool.grp g JOIN respool.parked k ON k.grp = g.id AND k.pos = r.pos)
    AND CASE WHEN r.pos < coalesce((SELECT floor FROM respool.log WHERE id = r.pos >> 40), r.pos + 1) THEN true
             WHEN r.grp = 0 THEN NOT EXISTS (SELECT 1 FROM respool.record WHERE pos = r.pos)
             ELSE NOT EXISTS (SELECT 1 FROM respool.outcome o WHERE o.grp = r.grp AND o.pos = r.pos
                              AND substring(o.value FROM 17 FOR 32) = r.digest) END
FROM respool.blob_ref r
WHERE (r.digest, r.stamp, r.pos, r.grp) > (%(digest)s, %(stamp)s, %(pos)s, %(grp)s)
ORDER BY r.digest, r.stamp, r.pos, r.grp LIMIT %(limit)s;

-- name: all_leases
SELECT spans FROM respool.lease;

-- name: drop_references
-- What was entered anew meanwhile is younger, and stays.
DELETE FROM respool.blob_ref r
USING unnest(%(digests)s::bytea[], %(stamps)s::bigint[], %(places)s::bigint[], %(grps)s::bigint[]) AS w (digest, stamp, pos, grp)
WHERE r.digest = w.digest AND r.stamp = w.stamp AND r.pos = w.pos AND r.grp = w.grp AND r.at < %(before)s;

-- name: blobs
SELECT digest, stamp, touched < %(before)s AND doomed IS NULL
    AND NOT EXISTS (SELECT 1 FROM respool.blob_ref r WHERE r.digest = b.digest AND r.stamp = b.stamp)
FROM respool.blob b WHERE (digest, stamp) > (%(digest)s, %(stamp)s) ORDER BY digest, stamp LIMIT %(limit)s;

-- name: lock_blobs
-- All of each row; one that an open transaction refers to, however long it is open, is passed over.
SELECT b.digest, b.stamp FROM respool.blob b
JOIN unnest(%(digests)s::bytea[], %(stamps)s::bigint[]) AS w (digest, stamp) USING (digest, stamp)
WHERE b.doomed IS NULL AND b.touched < %(before)s ORDER BY b.digest, b.stamp FOR UPDATE OF b SKIP LOCKED;

-- name: doom_blobs
-- In a statement after the lock: it sees all references that were entered before.
UPDATE respool.blob b SET doomed = %(now)s
FROM unnest(%(digests)s::bytea[], %(stamps)s::bigint[]) AS w (digest, stamp)
WHERE b.digest = w.digest AND b.stamp = w.stamp
AND NOT EXISTS (SELECT 1 FROM respool.blob_ref r WHERE r.digest = b.digest AND r.stamp = b.stamp);

-- name: has_blobs
SELECT EXISTS (SELECT 1 FROM respool.blob);

-- name: doomed_blobs
SELECT digest, stamp FROM respool.blob WHERE doomed IS NOT NULL ORDER BY doomed LIMIT %s;

-- name: forget_blobs
DELETE FROM respool.blob b USING unnest(%(digests)s::bytea[], %(stamps)s::bigint[]) AS w (digest, stamp)
WHERE b.digest = w.digest AND b.stamp = w.stamp AND b.doomed IS NOT NULL;

-- name: unknown_blobs
SELECT w.digest, w.stamp FROM unnest(%(digests)s::bytea[], %(stamps)s::bigint[]) AS w (digest, stamp)
WHERE NOT EXISTS (SELECT 1 FROM respool.blob b WHERE b.digest = w.digest AND b.stamp = w.stamp);

-- name: referred
SELECT digest, stamp, pos, grp FROM respool.blob_ref WHERE digest = %s ORDER BY stamp, pos, grp;

-- Moving a store to another engine, or taking one in

-- name: mark
SELECT mark::text, at::text FROM respool.move;

-- name: drop_mark
DELETE FROM respool.move;

-- name: put_mark
INSERT INTO respool.move (one, mark, at) VALUES (1, %s::text::jsonb, %s::text::jsonb)
ON CONFLICT (one) DO UPDATE SET mark = excluded.mark, at = excluded.at;

-- name: put_mark_at
UPDATE respool.move SET at = %s::text::jsonb;

-- name: own_triggers
SELECT c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE c.relnamespace = to_regnamespace(%s) AND t.tgname = 'respool_moved'
AND t.tgenabled <> 'D' AND NOT c.relispartition;

-- name: own_tables
SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind IN ('r', 'p') AND NOT relispartition
AND relname !~ '^(record|outcome|journal)_[0-9]+_[0-9]+$';

-- name: is_leased
SELECT EXISTS (SELECT 1 FROM respool.lease WHERE owner > 0);

-- name: log_places
SELECT l.id, l.priority, l.partition, greatest(l.floor, l.id << 40),
       greatest(l.floor, l.id << 40, coalesce((SELECT pos + 1 FROM respool.record
           WHERE pos >= l.id << 40 AND pos < (l.id + 1) << 40 ORDER BY pos DESC LIMIT 1), 0))
FROM respool.log l WHERE l.stream = %s ORDER BY l.id;

-- name: raw_records
-- A page ends with the record by which it has so many bytes.
SELECT pos, task, body, meta, seq, id, time FROM (
    SELECT *, sum(octet_length(body) + octet_length(coalesce(meta, '')) + 100)
              OVER (ORDER BY pos ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
    FROM (SELECT pos, task, body, meta, seq, id, time FROM respool.record WHERE pos >= %(lo)s AND pos < %(hi)s
          UNION ALL
          SELECT pos, task, body, meta, seq, id, time FROM respool.kept WHERE pos >= %(lo)s AND pos < %(hi)s
          ORDER BY pos LIMIT %(limit)s) AS next) AS sized
WHERE before IS NULL OR before < %(size)s ORDER BY pos;

-- name: came_late
SELECT DISTINCT r.pos FROM respool.gap g JOIN respool.record r ON r.pos >= g.lo AND r.pos < g.hi
WHERE g.grp = %s ORDER BY r.pos;

-- name: number_given
-- The highest number that a table has given out, rows that are gone included.
SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence(%s, 'id')::regclass), 0);

-- name: give_no_number
SELECT setval(pg_get_serial_sequence(%(table)s, 'id'), greatest(%(number)s::bigint,
    coalesce(pg_sequence_last_value(pg_get_serial_sequence(%(table)s, 'id')::regclass), 0)));

-- name: next_number
SELECT nextval(pg_get_serial_sequence(%s, 'id'));

-- name: take_stream
INSERT INTO respool.stream (id, kind, app, name, settings, created) OVERRIDING SYSTEM VALUE VALUES (%s, %s, %s, %s, %s, %s);

-- name: take_log
INSERT INTO respool.log (id, stream, priority, partition, floor) OVERRIDING SYSTEM VALUE VALUES (%s, %s, %s, %s, %s);

-- name: take_group
INSERT INTO respool.grp (id, stream, app, name, kind, settings, generation, created) OVERRIDING SYSTEM VALUE
VALUES (%s, %s, %s, %s, %s, %s, %s, %s);

-- name: set_next
-- By the number that was given out last: who looks for work goes by that.
SELECT setval(%(sequence)s::text::regclass, greatest(%(next)s::bigint - 1, %(first)s::bigint),
              %(next)s::bigint > %(first)s::bigint);

-- name: take_records
COPY respool.record (pos, task, body, meta, seq, id, time, key) FROM STDIN (FORMAT BINARY);

-- name: take_kept
COPY respool.kept (pos, task, body, meta, seq, id, time, key) FROM STDIN (FORMAT BINARY);

-- name: take_ids
COPY respool.ids (id, pos, last) FROM STDIN (FORMAT BINARY);

-- name: column_types
SELECT attname, atttypid::bigint FROM pg_attribute WHERE attrelid = %s::text::regclass AND attnum > 0;

-- name: incoming
SELECT EXISTS (SELECT 1 FROM respool.stream WHERE kind = %s AND app = %s AND name = %s);

-- name: blob_rows
SELECT digest, stamp, size, touched FROM respool.blob WHERE (digest, stamp) > (%s, %s) AND doomed IS NULL
ORDER BY digest, stamp LIMIT %s;

-- name: take_blobs
COPY respool.blob (digest, stamp, size, touched) FROM STDIN (FORMAT BINARY);

-- name: give_names
UPDATE respool.stream SET app = substr(app, length(%(incoming)s::text) + 1) WHERE starts_with(app, %(incoming)s::text);

-- name: discard_ids
DELETE FROM respool.ids WHERE id IN (SELECT id FROM respool.ids WHERE pos >= %s AND pos < %s LIMIT %s);

-- name: discard_references
DELETE FROM respool.blob_ref WHERE pos >= %s AND pos < %s;

-- name: discard_kept
DELETE FROM respool.kept WHERE pos >= %s AND pos < %s;

-- name: discard_rest
WITH outcomes AS (DELETE FROM respool.outcome_rest WHERE pos >= %(lo)s AND pos < %(hi)s)
DELETE FROM respool.journal_rest WHERE lo >= %(lo)s AND lo < %(hi)s;

-- name: drop_logs
DELETE FROM respool.log WHERE stream = %s;

-- name: drop_stream
DELETE FROM respool.stream WHERE id = %s;

-- name: run_parts
-- The entries of a run, of which a transfer may have made several: ids from the first to the last.
SELECT pos, last, id FROM respool.ids WHERE id >= %s AND id <= %s ORDER BY id;
