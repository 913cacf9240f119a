-- Every statement the engine runs, by name. `?1` and the like are bound; nothing is ever pasted in.

-- name: append_run
-- One statement, so that lock, write and sync happen in one call that does not hold the GIL (H1).
-- ?7 and ?8 are the first and the last position of the log; ?9 is NULL where the id tells the time, else 0.
INSERT INTO record (pos, task, body, meta, seq, id, time)
SELECT ifnull((SELECT max(floor, ifnull((SELECT max(pos) FROM record WHERE pos BETWEEN ?7 AND ?8) + 1, 0))
               FROM log WHERE id = ?1) + run.rowid - 1, 'no such log'),
       ?2, run.value, ?4,
       iif(run.rowid = 1, ?9, run.rowid - 1),
       iif(run.rowid = 1, ?5, NULL),
       iif(run.rowid = 1, ?6, NULL)
FROM carray(?3) AS run
WHERE NOT EXISTS (SELECT 1 FROM record WHERE id IS NOT NULL AND id = ?5);

-- name: place_of_run
-- Where a run would begin, and whether it is there already.
SELECT max(floor, ifnull((SELECT max(pos) FROM record WHERE pos BETWEEN ?2 AND ?3) + 1, 0)),
       EXISTS (SELECT 1 FROM record WHERE id IS NOT NULL AND id = ?4)
FROM log WHERE id = ?1;

-- name: append_run_at
-- The run that begins at ?1. It reads nothing of its table, so that no temporary one is filled first.
INSERT INTO record (pos, task, body, meta, seq, id, time)
SELECT ?1 + run.rowid - 1, ?2, run.value, ?4,
       iif(run.rowid = 1, ?7, run.rowid - 1),
       iif(run.rowid = 1, ?5, NULL),
       iif(run.rowid = 1, ?6, NULL)
FROM carray(?3) AS run;

-- name: append_rows
-- `(values)` is replaced by as many rows of placeholders as there are records. ?2 and ?3 are the fence,
-- ?4 and ?5 the first and the last position of the log. Where the log is gone, the text in place of the
-- position is refused: a NULL would be taken for "any free one".
INSERT INTO record (pos, task, body, meta, id, time, seq, key)
SELECT ifnull((SELECT max(floor, ifnull((SELECT max(pos) FROM record WHERE pos BETWEEN ?4 AND ?5) + 1, 0))
               FROM log WHERE id = ?1) + column1, 'no such log'),
       column2, column3, column4, column5, column6, column7, column8
FROM (values)
WHERE ?2 IS NULL OR EXISTS (SELECT 1 FROM lease WHERE id = ?2 AND owner = ?3)
ON CONFLICT (id) WHERE id IS NOT NULL DO NOTHING;

-- name: append_row
-- One record without a fence: the same, less what that does not need. ?2 and ?3 are the first and the last
-- position of the log. VALUES, since a SELECT that reads the table it fills goes through a temporary one.
INSERT INTO record (pos, task, body, meta, id, time, seq, key)
VALUES (ifnull((SELECT max(floor, ifnull((SELECT max(pos) FROM record WHERE pos BETWEEN ?2 AND ?3) + 1, 0))
                FROM log WHERE id = ?1), 'no such log'),
        ?4, ?5, ?6, ?7, ?8, ?9, ?10)
ON CONFLICT (id) WHERE id IS NOT NULL DO NOTHING;

-- name: by_id
SELECT pos FROM record WHERE id IS NOT NULL AND id = ?1;

-- name: whole
SELECT r.task, r.body, h.time FROM record r JOIN record h ON h.pos = r.pos - ifnull(r.seq, 0) WHERE r.pos = ?1;

-- name: by_run_id
SELECT pos, id FROM record WHERE id IS NOT NULL AND id <= ?1 AND id >= ?2 ORDER BY id DESC LIMIT 1;

-- name: is_member
SELECT 1 FROM record WHERE pos = ?1 AND seq = ?2;

-- name: rows
SELECT pos, task, body, meta FROM record WHERE pos >= ?1 AND pos < ?2;

-- name: records
SELECT r.pos, r.task, r.body, r.meta, r.seq, h.id, h.time
FROM record r JOIN record h ON h.pos = r.pos - ifnull(r.seq, 0)
WHERE r.pos >= ?1 AND r.pos < ?2 ORDER BY r.pos LIMIT ?3;

-- name: heads_between
-- The first and the last head of the log (?1, positions ?2 to ?3) with a time from ?6 to below ?7; of
-- those whose id tells the time, by ids from ?4 to below ?5, which are as fine as milliseconds.
SELECT min(pos), max(pos) FROM (
    SELECT pos FROM record WHERE id IS NOT NULL AND id >= ?4 AND id < ?5 AND pos BETWEEN ?2 AND ?3 AND seq IS NULL
        AND time >= ?6 AND time < ?7
    UNION ALL
    SELECT pos FROM record WHERE seq = 0 AND pos >> 40 = ?1 AND time >= ?6 AND time < ?7);

-- name: next_head
SELECT pos FROM record WHERE pos > ?1 AND pos <= ?2 AND time IS NOT NULL ORDER BY pos LIMIT 1;

-- name: log_bounds
SELECT l.id,
       ifnull((SELECT min(pos) FROM record WHERE pos BETWEEN l.floor AND (l.id << 40) + 1099511627775), l.floor),
       max(ifnull((SELECT max(pos) FROM record WHERE pos BETWEEN l.id << 40 AND (l.id << 40) + 1099511627775) + 1, 0), l.floor)
FROM log l WHERE l.stream = ?1 ORDER BY l.id;

-- name: streams
SELECT id, kind, app, name, settings, created FROM stream ORDER BY id;

-- name: stream
SELECT id, kind, app, name, settings, created FROM stream WHERE kind = ?1 AND app = ?2 AND name = ?3;

-- name: add_stream
INSERT INTO stream (kind, app, name, settings, created) VALUES (?, ?, ?, ?, ?) RETURNING id;

-- name: set_setting
UPDATE stream SET settings = json_set(settings, ?2, json(?3)) WHERE id = ?1;

-- name: logs
SELECT id, priority FROM log WHERE stream = ?1 ORDER BY id;

-- name: add_log
INSERT INTO log (stream, partition, priority, floor) VALUES (?1, ?2, ?3, 0) RETURNING id;

-- name: set_floor
UPDATE log SET floor = id << 40 WHERE stream = ?1 AND floor = 0;

-- name: groups
SELECT id, stream, app, name, kind, settings, generation, created FROM grp ORDER BY id;

-- name: add_group
INSERT INTO grp (stream, app, name, kind, settings, created) VALUES (?, ?, ?, ?, ?, ?) RETURNING id;

-- name: add_position
INSERT INTO position (grp, log, cursor, start, stop, priority)
SELECT ?1, id, ?3, ?3, ?4, ifnull(priority, 4) FROM log WHERE id = ?2;

-- name: add_positions
-- Of the logs that a stream got after its groups, or while they were made: read from 0, but by no replay (H10).
INSERT INTO position (grp, log, cursor, start, stop, priority)
SELECT g.id, l.id, l.id << 40, l.id << 40, iif(g.kind = 'replay', l.id << 40, NULL), ifnull(l.priority, 4)
FROM grp g JOIN log l ON l.stream = g.stream WHERE g.stream = ?1
ON CONFLICT DO NOTHING;

-- name: positions
-- Every group has a row for each log of its stream, made with the later of the two (H10).
SELECT log, cursor,
       ifnull((SELECT max(pos) FROM record WHERE pos BETWEEN log << 40 AND (log << 40) + 1099511627775) + 1, cursor),
       stop, priority
FROM position WHERE grp = ?1;

-- name: claimable
-- The positions, with what saves most claims three statements: is anything returned, due there, unknown so far?
SELECT log, cursor,
       ifnull((SELECT max(pos) FROM record WHERE pos BETWEEN log << 40 AND (log << 40) + 1099511627775) + 1, cursor),
       stop, priority,
       EXISTS (SELECT 1 FROM lease WHERE grp = ?1 AND ifnull(owner, 0) = 0),
       EXISTS (SELECT 1 FROM parked WHERE grp = ?1 AND pos >> 40 = +log AND due <= ?2),
       EXISTS (SELECT 1 FROM parked INDEXED BY parked_reason WHERE grp = ?1 AND reason = 'unknown' AND due IS NULL),
       (SELECT settings FROM grp WHERE id = ?1)
FROM position WHERE grp = ?1;

-- name: group_settings
SELECT settings, generation FROM grp WHERE id = ?1;

-- name: set_settings
UPDATE grp SET settings = json_patch(settings, ?2) WHERE id = ?1;

-- name: set_generation
UPDATE grp SET generation = ?2 WHERE id = ?1;

-- name: lower_start
UPDATE position SET start = min(start, ?3) WHERE grp = ?1 AND log = ?2;

-- A group that is moved back: what is known of ?2 <= pos < ?3 becomes history. Entries of the journal that end a
-- record say so no more; one that begins below ?2 is split there.

-- name: rewind_parked
DELETE FROM parked WHERE grp = ?1 AND pos >= ?2 AND pos < ?3;

-- name: rewind_outcomes
DELETE FROM outcome WHERE grp = ?1 AND pos >= ?2 AND pos < ?3;

-- name: rewind_progress
DELETE FROM progress WHERE grp = ?1 AND pos >= ?2 AND pos < ?3;

-- name: rewind_split
-- ?3 is ?2 less the longest lease.
INSERT INTO journal (grp, lo, n, hi, owner, child, started, ended, how, retries, note)
SELECT grp, ?2, n, hi, owner, child, started, ended, 'rewound', retries, ifnull(note, how) || ', before it was rewound'
FROM journal WHERE grp = ?1 AND lo > ?3 AND lo < ?2 AND hi > ?2
AND how NOT IN ('rewound', 'retry', 'scheduled', 'redriven', 'lost', 'unknown', 'blocked', 'limited', 'returned')
UNION ALL
SELECT grp, ?2, n, hi, owner, child, started, ended, 'rewound', retries, ifnull(note, how) || ', before it was rewound'
FROM journal INDEXED BY journal_purged WHERE grp = ?1 AND lo <= ?3 AND hi > ?2 AND how = 'purged';

-- name: rewind_cut
UPDATE journal SET hi = ?2 WHERE grp = ?1 AND lo > ?3 AND lo < ?2 AND hi > ?2
AND how NOT IN ('rewound', 'retry', 'scheduled', 'redriven', 'lost', 'unknown', 'blocked', 'limited', 'returned');

-- name: rewind_cut_purges
UPDATE journal SET hi = ?2 WHERE (grp, lo, n) IN (
    SELECT grp, lo, n FROM journal INDEXED BY journal_purged
    WHERE grp = ?1 AND lo <= ?3 AND hi > ?2 AND how = 'purged');

-- name: rewind_journal
UPDATE journal SET how = 'rewound', note = ifnull(note, how) || ', before it was rewound'
WHERE grp = ?1 AND lo >= ?2 AND lo < ?3
AND how NOT IN ('rewound', 'retry', 'scheduled', 'redriven', 'lost', 'unknown', 'blocked', 'limited', 'returned');


-- name: position
SELECT cursor, start, stop FROM position WHERE grp = ?1 AND log = ?2;

-- name: set_cursor
UPDATE position SET cursor = ?3 WHERE grp = ?1 AND log = ?2;


-- name: lease
SELECT id, owner, child, spans, bodies, since, admitted, keys FROM lease WHERE id = ?2 AND grp = ?1;

-- name: returned
-- What waits for more comes last, or a few batches that form would hide what was given back.
SELECT id, owner, child, spans, bodies, since, admitted, keys FROM lease WHERE grp = ?1 AND ifnull(owner, 0) = 0
ORDER BY owner IS NOT NULL AND since > ?3, child < 0, iif(child < 0, since, id) LIMIT ?2;

-- name: leases
SELECT id, owner, child, spans, bodies, since, admitted, keys FROM lease WHERE grp = ?1 ORDER BY id;

-- name: leases_of_owner
SELECT grp, id, owner, child, spans, bodies, since, admitted, keys FROM lease WHERE owner = ?1 ORDER BY id;

-- name: put_lease
INSERT INTO lease (id, grp, owner, child, spans, bodies, since, admitted, keys) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, spans = excluded.spans, bodies = excluded.bodies,
    admitted = excluded.admitted, keys = excluded.keys;

-- name: drop_lease
DELETE FROM lease WHERE id = ?;

-- name: fence
SELECT 1 FROM lease WHERE id = ?1 AND owner = ?2;

-- name: due
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, key
FROM parked WHERE grp = ?1 AND pos >> 40 = ?2 AND due <= ?3 ORDER BY due LIMIT ?4;

-- name: unknown
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, parked.key
FROM parked INDEXED BY parked_reason WHERE grp = ?1 AND reason = 'unknown' AND due IS NULL
AND task IN (SELECT value FROM json_each(?2)) LIMIT ?3;


-- Ordered groups: what is parked of a key holds it up, unless the key is negative.

-- name: keys_ahead
SELECT pos, key FROM record WHERE pos >= ?1 AND pos < ?2 ORDER BY pos LIMIT ?3;

-- name: keyed
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, NULL, at, waits, key
FROM parked INDEXED BY parked_key WHERE grp = ?1 AND key > 0 LIMIT ?2;

-- name: waiting
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, NULL, at, waits, parked.key
FROM json_each(?2) AS asked CROSS JOIN parked INDEXED BY parked_key
WHERE grp = ?1 AND parked.key = asked.value AND parked.key > 0;

-- name: blocked
SELECT count(*) FROM (SELECT 1 FROM parked INDEXED BY parked_blocked
                      WHERE grp = ?1 AND pos >= ?2 AND pos < ?3 AND reason = 'blocked' LIMIT ?4);

-- name: unknown_tasks
SELECT DISTINCT task FROM parked WHERE grp = ?1 AND reason = 'unknown' AND due IS NULL;

-- name: parked_one
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, key
FROM parked WHERE grp = ?1 AND pos = ?2;

-- name: parked_at
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, parked.key
FROM json_each(?2) AS wanted CROSS JOIN parked ON parked.grp = ?1 AND parked.pos = wanted.value;

-- name: parked_list
SELECT grp, pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, parked.key
FROM parked WHERE grp IN (SELECT value FROM json_each(:groups))
AND (:reasons IS NULL OR reason IN (SELECT value FROM json_each(:reasons)))
AND (:tasks IS NULL OR task IN (SELECT value FROM json_each(:tasks)))
AND (:positions IS NULL OR pos IN (SELECT value FROM json_each(:positions)))
AND (:since IS NULL OR at >= :since) AND (:until IS NULL OR at < :until)
ORDER BY at, pos LIMIT :limit;

-- name: dead_before
SELECT pos FROM parked WHERE grp = ?1 AND reason = 'dead' AND task = ?2 AND at < ?3 ORDER BY at LIMIT ?4;

-- name: dead_tasks
-- Each is one step in the index, however many dead letters it has.
WITH RECURSIVE named (task) AS (
    SELECT min(task) FROM parked WHERE grp = ?1 AND reason = 'dead'
    UNION ALL
    SELECT (SELECT min(task) FROM parked WHERE grp = ?1 AND reason = 'dead' AND task > named.task)
    FROM named WHERE named.task IS NOT NULL)
SELECT task FROM named WHERE task IS NOT NULL;

-- name: parked_between
SELECT count(*) FROM parked WHERE grp = ?1 AND pos >= ?2 AND pos < ?3 AND reason <> 'dead';

-- name: next_due
-- Or when a lease has waited long enough for more (owner 0: see delivery.model.WAITING).
SELECT min(due) FROM (
    SELECT min((SELECT due FROM parked WHERE grp = ?1 AND pos >> 40 = +log AND due > ?2 ORDER BY due LIMIT 1)) AS due
    FROM position WHERE grp = ?1
    UNION ALL SELECT since FROM lease WHERE grp = ?1 AND owner = 0 AND since > ?2);

-- name: put_parked
INSERT OR REPLACE INTO parked (grp, pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, key)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: keep
-- A record of a log that is kept elsewhere, which parks it: like one that stayed behind when its log was cut.
INSERT OR IGNORE INTO record (pos, task, body, meta) VALUES (?, ?, ?, ?);

-- name: drop_parked
DELETE FROM parked WHERE grp = ? AND pos = ?;

-- name: parked_counts
-- Dead letters, of which there may be many, without a look at their rows, which are long.
SELECT reason, sum(n) FROM (
    SELECT 'dead' AS reason, count(*) AS n FROM parked WHERE grp = ?1 AND reason = 'dead'
    UNION ALL
    SELECT reason, count(*) FROM parked INDEXED BY parked_reason
    WHERE grp = ?1 AND due IS NULL AND reason < 'dead' GROUP BY reason
    UNION ALL
    SELECT reason, count(*) FROM parked INDEXED BY parked_reason
    WHERE grp = ?1 AND due IS NULL AND reason > 'dead' GROUP BY reason
    UNION ALL
    SELECT reason, count(*) FROM parked INDEXED BY parked_due
    WHERE grp = ?1 AND due IS NOT NULL AND reason <> 'dead' GROUP BY reason)
WHERE n > 0 GROUP BY reason;

-- name: put_outcome
INSERT OR REPLACE INTO outcome (grp, pos, ending, value, at, until) VALUES (?, ?, ?, ?, ?, ?);

-- name: put_results
-- The outcomes of records that stand side by side and returned something: ?2 is the first's position.
INSERT OR REPLACE INTO outcome (grp, pos, ending, value, at)
SELECT ?1, ?2 + returned.rowid - 1, 0, returned.value, ?4 FROM carray(?3) AS returned;

-- name: place
-- What most of those who wait for a call need to know, in one statement and so of one moment.
SELECT p.cursor, p.start, p.stop, EXISTS (SELECT 1 FROM parked k WHERE k.grp = ?1 AND k.pos = ?2),
       o.pos, o.ending, o.value, o.at, o.until
FROM position p LEFT JOIN outcome o ON o.grp = ?1 AND o.pos = ?2
WHERE p.grp = ?1 AND p.log = ?2 >> 40;

-- name: outcome
SELECT pos, ending, value, at, until FROM outcome WHERE grp = ?1 AND pos = ?2;

-- name: outcomes
SELECT pos, ending, value, at, until FROM outcome WHERE grp = ?1 AND pos >= ?2 AND pos < ?3 ORDER BY pos;

-- name: forget_outcome
DELETE FROM outcome WHERE grp = ? AND pos = ?;

-- name: has_expired
SELECT EXISTS (SELECT 1 FROM outcome WHERE until > 0 AND until <= ?1);

-- name: expire_outcomes
-- H9: the ending stays, so that nobody takes "no row" for "returned None".
UPDATE outcome SET value = NULL, until = 0
WHERE (grp, pos) IN (SELECT grp, pos FROM outcome WHERE until > 0 AND until <= ?1 LIMIT ?2);

-- name: put_progress
INSERT OR REPLACE INTO progress (grp, pos, value)
SELECT ?1, ?2, ?3 WHERE ?4 IS NULL OR EXISTS (SELECT 1 FROM lease WHERE id = ?4 AND owner = ?5);

-- name: progress
SELECT value FROM progress WHERE grp = ?1 AND pos = ?2;

-- name: drop_progress
DELETE FROM progress WHERE grp = ? AND pos = ?;

-- name: put_journal
INSERT INTO journal (grp, lo, n, hi, owner, child, started, ended, how, retries, note)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);


-- name: journal
-- Ranges are no longer than the largest purge or lease; those that begin far below are found by ?3.
SELECT lo, hi, owner, child, started, ended, how, retries, note
FROM journal WHERE grp = ?1 AND lo <= ?2 AND lo > ?3 AND hi > ?2
UNION ALL
SELECT lo, hi, owner, child, started, ended, how, retries, note
FROM journal INDEXED BY journal_purged WHERE grp = ?1 AND lo <= ?3 AND hi > ?2 AND how = 'purged'
ORDER BY ended;

-- name: began
-- Each of these entries is of one record.
SELECT j.lo FROM json_each(?2) AS r CROSS JOIN journal j
WHERE j.grp = ?1 AND j.lo >= r.value ->> 0 AND j.lo < r.value ->> 1 AND j.how IN ('lost', 'retry');

-- name: add_count
INSERT INTO counter (grp, name, value) VALUES (?1, ?2, ?3)
ON CONFLICT (grp, name) DO UPDATE SET value = value + excluded.value;

-- name: counters
SELECT name, value FROM counter WHERE grp = ?1 ORDER BY name;

-- name: open_waiting
SELECT bucket FROM waiting WHERE grp = ?1 AND next <= ?2 ORDER BY next LIMIT ?3;

-- name: next_open
SELECT min(next) FROM waiting WHERE grp = ?1 AND next > ?2;

-- name: is_waited_for
SELECT 1 FROM waiting WHERE grp = ?1 AND bucket = ?2;

-- name: bucket
SELECT id, rule, key, rate, burst, slots, tokens, at FROM bucket WHERE id = ?1;

-- name: holders
SELECT id, admitted FROM lease WHERE admitted IS NOT NULL AND owner IS NOT NULL;

-- name: waiting_for
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, key
FROM parked WHERE grp = ?1 AND waits = ?2 AND pos >= ?3 AND pos < ?4 ORDER BY pos LIMIT ?5;

-- name: put_bucket
-- The limit itself stays as the newest worker has declared it.
INSERT INTO bucket (id, rule, key, rate, burst, slots, tokens, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET tokens = excluded.tokens, at = excluded.at;

-- name: refund
UPDATE bucket SET tokens = min(burst, tokens + ?2) WHERE id = ?1;

-- name: put_waiting
INSERT INTO waiting (grp, bucket, next) VALUES (?1, ?2, ?3)
ON CONFLICT (grp, bucket) DO UPDATE SET next = excluded.next;

-- name: drop_waiting
DELETE FROM waiting WHERE grp = ?1 AND bucket = ?2;

-- name: slot_freed
UPDATE waiting SET next = 0 WHERE bucket = ?1 AND next IS NULL;

-- name: logs_waiting
SELECT min(log.id) FROM waiting JOIN grp ON grp.id = waiting.grp JOIN log ON log.stream = grp.stream
WHERE waiting.bucket IN (SELECT value FROM json_each(?1)) GROUP BY log.stream;

-- name: open_bucket
UPDATE waiting SET next = 0 WHERE bucket = ?1;

-- name: declared
SELECT id FROM bucket WHERE rule = ?1 AND (rate IS NOT ?2 OR burst IS NOT ?3 OR slots IS NOT ?4);

-- name: declare
UPDATE bucket SET rate = ?2, burst = ?3, slots = ?4, tokens = min(tokens, ?3) WHERE id = ?1;

-- name: unused_buckets
-- Full again, as if it had never been used; leases may still name some of them.
SELECT id FROM bucket WHERE at < ?1 AND (rate IS NULL OR tokens + (?1 - at) * rate >= burst)
AND NOT EXISTS (SELECT 1 FROM waiting WHERE waiting.bucket = bucket.id) LIMIT ?2;

-- name: drop_bucket
DELETE FROM bucket WHERE id = ?1;

-- name: open_all
UPDATE waiting SET next = 0 WHERE next IS NULL RETURNING bucket;

-- name: waited_for
-- The next of these: whether for a slot, and how many slots there are.
SELECT w.bucket, w.next IS NULL, b.slots
FROM (SELECT bucket, next FROM waiting WHERE bucket > ?1 ORDER BY bucket LIMIT ?2) AS w
LEFT JOIN bucket b ON b.id = w.bucket ORDER BY w.bucket;

-- name: limited_count
SELECT count(*) FROM (SELECT 1 FROM parked WHERE grp = ?1 AND waits IS NOT NULL LIMIT ?2);

-- name: buckets_of
SELECT id, rule, key, rate, burst, slots, tokens, at FROM bucket WHERE id IN (SELECT value FROM json_each(?1));

-- name: lock_of
SELECT key, id, pos, until FROM unique_lock WHERE key = ?1;

-- name: append_unique
INSERT INTO unique_call (log, first, last, lease, owner, task, body, meta, id, time, seq, hash, key, seen, until)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: locks_after
-- With what tells whether the record has ended in `main`, but for leases. A dead letter may be given back.
SELECT u.key, u.pos, (u.until IS NULL OR u.until <= ?2) AND NOT EXISTS (
    SELECT 1 FROM log l JOIN grp g ON g.stream = l.stream AND g.kind = 'main'
    JOIN position p ON p.grp = g.id AND p.log = l.id
    WHERE l.id = u.pos >> 40 AND (u.pos >= p.cursor OR EXISTS (
        SELECT 1 FROM parked k WHERE k.grp = g.id AND k.pos = u.pos)))
FROM unique_lock u WHERE u.key > ?1 ORDER BY u.key LIMIT ?3;

-- name: main_leases
SELECT spans FROM lease l JOIN grp g ON g.id = l.grp WHERE g.kind = 'main';

-- name: move_lock
UPDATE unique_lock SET pos = ?3 WHERE key = ?1 AND pos = ?2;

-- name: drop_lock
DELETE FROM unique_lock WHERE key = ?1 AND pos = ?2 AND (until IS NULL OR until <= ?3);

-- name: once
SELECT value FROM once WHERE pos = ?1 AND step = ?2;

-- name: put_once
INSERT INTO once (pos, step, value, at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING;

-- name: add_worker
INSERT INTO worker (app, name, host, boot, pid, started, beaten, info) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7) RETURNING id;

-- name: workers
SELECT id, app, name, host, boot, pid, beat, started, beaten, draining, info FROM worker ORDER BY id;

-- name: beat
UPDATE worker SET beat = beat + 1, beaten = ?2, draining = ?3, info = ?4 WHERE id = ?1 RETURNING beat;

-- name: drop_worker
DELETE FROM worker WHERE id = ?1;

-- name: drop_group_positions
DELETE FROM position WHERE grp = ?1;
-- name: drop_group_leases
DELETE FROM lease WHERE grp = ?1;
-- name: release
-- What is limited (child -1: see delivery.model.LIMITED) may be claimed.
UPDATE lease SET since = 0 WHERE grp = ?1 AND owner = 0 AND child = -1;

-- name: note_dropped
-- What is left of the group goes slice by slice.
INSERT OR IGNORE INTO counter (grp, name, value) VALUES (?1, 'group dropped', ?2);
-- name: dropped_group
SELECT grp FROM counter WHERE name = 'group dropped' AND grp NOT IN (SELECT id FROM grp) LIMIT 1;
-- name: drop_some_parked
DELETE FROM parked WHERE grp = ?1 AND pos <= ifnull(
    (SELECT pos FROM parked WHERE grp = ?1 ORDER BY pos LIMIT 1 OFFSET ?2), 9223372036854775807);
-- name: drop_some_outcome
DELETE FROM outcome WHERE grp = ?1 AND pos <= ifnull(
    (SELECT pos FROM outcome WHERE grp = ?1 ORDER BY pos LIMIT 1 OFFSET ?2), 9223372036854775807);
-- name: drop_some_progress
DELETE FROM progress WHERE grp = ?1 AND pos <= ifnull(
    (SELECT pos FROM progress WHERE grp = ?1 ORDER BY pos LIMIT 1 OFFSET ?2), 9223372036854775807);
-- name: drop_some_journal
DELETE FROM journal WHERE grp = ?1 AND lo <= ifnull(
    (SELECT lo FROM journal WHERE grp = ?1 ORDER BY lo LIMIT 1 OFFSET ?2), 9223372036854775807);
-- name: drop_group_waiting
DELETE FROM waiting WHERE grp = ?1;
-- name: drop_group_counters
DELETE FROM counter WHERE grp = ?1;
-- name: drop_group
DELETE FROM grp WHERE id = ?1;

-- name: is_held
-- Paused, or being moved by a seek.
SELECT settings <> '{}' AND (json_extract(settings, '$.paused') IS NOT NULL
                             OR json_extract(settings, '$.seek') IS NOT NULL) FROM grp WHERE id = ?1;

-- name: has_work
SELECT EXISTS (SELECT 1 FROM position WHERE grp = ?1 AND EXISTS (
        SELECT 1 FROM parked WHERE grp = ?1 AND pos >> 40 = +log AND due <= ?2))
    OR EXISTS (SELECT 1 FROM waiting WHERE grp = ?1 AND next <= ?2)
    OR EXISTS (SELECT 1 FROM lease WHERE grp = ?1 AND (owner IS NULL OR (owner = 0 AND since <= ?2)))
    OR EXISTS (SELECT 1 FROM parked INDEXED BY parked_reason WHERE grp = ?1 AND reason = 'unknown' AND due IS NULL
               AND task IN (SELECT value FROM json_each(?3)));


-- name: outside
SELECT r.pos FROM record r JOIN record h ON h.pos = r.pos - ifnull(r.seq, 0)
WHERE r.pos >= ?1 AND r.pos < ?2 AND NOT (h.time >= ?3 AND h.time < ?4);

-- What commands and checks ask; none of it is on a worker's way.

-- name: tasks_between
SELECT r.task, count(*) FROM record r JOIN record h ON h.pos = r.pos - ifnull(r.seq, 0)
WHERE r.pos >= ?1 AND r.pos < ?2
AND h.time >= ?3 AND h.time < ?4
GROUP BY r.task;

-- name: briefs
-- Bodies longer than ?6 bytes are left out, so that a page of large records fits in memory.
SELECT r.pos, r.task, length(r.body), iif(length(r.body) <= ?6, r.body, NULL), r.meta, r.seq, h.id, h.time
FROM record r JOIN record h ON h.pos = r.pos - ifnull(r.seq, 0)
WHERE r.pos >= ?1 AND r.pos < ?2 AND (?3 IS NULL OR r.task = ?3)
AND h.time >= ?4 AND h.time < ?5
ORDER BY r.pos;

-- name: group_bounds
SELECT l.id, ifnull(p.start, l.id << 40), ifnull(p.cursor, l.id << 40), p.stop
FROM grp g JOIN log l ON l.stream = g.stream LEFT JOIN position p ON p.grp = g.id AND p.log = l.id
WHERE g.id = ?1 ORDER BY l.id;

-- name: parked_after
SELECT pos, task FROM parked WHERE grp = :grp AND pos > :after
AND (:reasons IS NULL OR reason IN (SELECT value FROM json_each(:reasons)))
AND (:tasks IS NULL OR task IN (SELECT value FROM json_each(:tasks)))
AND (:positions IS NULL OR pos IN (SELECT value FROM json_each(:positions)))
AND (:since IS NULL OR at >= :since) AND (:until IS NULL OR at < :until)
ORDER BY pos LIMIT :limit;

-- name: parked_page
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, body, error, at, waits, parked.key
FROM parked WHERE grp = :grp AND pos > :after
AND (:reasons IS NULL OR reason IN (SELECT value FROM json_each(:reasons)))
AND (:tasks IS NULL OR task IN (SELECT value FROM json_each(:tasks)))
AND (:positions IS NULL OR pos IN (SELECT value FROM json_each(:positions)))
AND (:since IS NULL OR at >= :since) AND (:until IS NULL OR at < :until)
ORDER BY pos LIMIT :limit;

-- name: parked_by_task
SELECT reason, task, count(*) FROM parked WHERE grp = ?1 GROUP BY reason, task;

-- name: parked_within
-- Bodies and errors are left out: a page may hold ten thousand.
SELECT pos, reason, due, task, retries, deliveries, redrives, alone, iif(body IS NULL, NULL, x''), NULL, at, waits, key
FROM parked WHERE grp = ?1 AND pos >= ?2 AND pos < ?3 ORDER BY pos;

-- name: outcomes_within
SELECT pos, ending, NULL, at, until FROM outcome WHERE grp = ?1 AND pos >= ?2 AND pos < ?3 ORDER BY pos;

-- name: journal_within
-- As `journal`, for all positions from ?2 to ?3; ?4 is ?2 less the longest lease.
SELECT lo, hi, how, ended FROM journal WHERE grp = ?1 AND lo > ?4 AND lo < ?3 AND hi > ?2
UNION ALL
SELECT lo, hi, how, ended FROM journal INDEXED BY journal_purged
WHERE grp = ?1 AND lo <= ?4 AND hi > ?2 AND how = 'purged'
ORDER BY ended;

-- name: count_between
SELECT count(*) FROM record WHERE pos >= ?1 AND pos < ?2;

-- name: positions_between
SELECT pos FROM record WHERE pos >= ?1 AND pos < ?2 ORDER BY pos;

-- name: broken_runs
-- A record is the head of its run, with id and time, or stands `seq` places after one in the same log.
SELECT r.pos FROM record r LEFT JOIN record h ON h.pos = r.pos - r.seq
WHERE r.pos >= ?1 AND r.pos < ?2 AND iif(ifnull(r.seq, 0) = 0,
    r.id IS NULL OR r.time IS NULL,
    r.seq < 0 OR h.pos IS NULL OR h.id IS NULL OR h.time IS NULL OR h.pos >> 40 <> r.pos >> 40)
LIMIT ?3;

-- name: all_logs
SELECT l.id, l.stream, l.floor, (SELECT 1 FROM stream s WHERE s.id = l.stream) FROM log l ORDER BY l.id;

-- name: first_between
SELECT pos FROM record WHERE pos >= ?1 AND pos < ?2 ORDER BY pos LIMIT 1;

-- name: stray_parked
-- Parked where the group has not been: outside its logs, below its start, at or above its cursor.
SELECT k.pos FROM parked k JOIN grp g ON g.id = k.grp
LEFT JOIN log l ON l.id = k.pos >> 40 AND l.stream = g.stream
LEFT JOIN position p ON p.grp = k.grp AND p.log = l.id
WHERE k.grp = ?1 AND (l.id IS NULL OR k.pos < ifnull(p.start, l.id << 40)
                      OR k.pos >= ifnull(p.cursor, l.id << 40) OR k.pos >= p.stop)
LIMIT ?2;

-- name: orphans
SELECT 'leases', grp FROM lease WHERE grp NOT IN (SELECT id FROM grp)
UNION SELECT 'parked records', grp FROM parked WHERE grp NOT IN (SELECT id FROM grp)
    AND grp NOT IN (SELECT grp FROM counter WHERE name = 'group dropped')
UNION SELECT 'positions', grp FROM position WHERE grp NOT IN (SELECT id FROM grp);

-- name: worker_ids
SELECT id FROM worker;

-- name: last_between
SELECT max(pos) FROM record WHERE pos >= ?1 AND pos < ?2;

-- Retention. A log is cut from its beginning, at the head of a run, up to what some group still needs. What is
-- parked stays behind below the floor, as a head of its own (H15).

-- name: above_floor
-- The first record at or above the floor, and one past the last.
SELECT (SELECT min(pos) FROM record WHERE pos >= l.floor AND pos < (l.id + 1) << 40),
       (SELECT max(pos) FROM record WHERE pos >= l.floor AND pos < (l.id + 1) << 40) + 1
FROM log l WHERE l.id = ?1;

-- name: floor
SELECT floor FROM log WHERE id = ?1;

-- name: low_water
-- Below this position no group has anything pending in the log. A replay that has come to its end holds nothing.
SELECT min(cursor) FROM position WHERE log = ?1 AND (stop IS NULL OR cursor < stop);

-- name: stream_leases
SELECT l.spans FROM lease l JOIN grp g ON g.id = l.grp WHERE g.stream = ?1;

-- name: parked_in
SELECT DISTINCT k.pos FROM grp g CROSS JOIN parked k ON k.grp = g.id
WHERE g.stream = ?1 AND k.pos >= ?2 AND k.pos < ?3;

-- name: members
-- Those of these records that have a `seq`, with what their head knows.
SELECT r.pos, r.seq, h.id, h.time
FROM json_each(?1) AS chosen CROSS JOIN record r ON r.pos = chosen.value AND r.seq IS NOT NULL
JOIN record h ON h.pos = r.pos - r.seq;

-- name: stand_alone
-- Without a `seq` it needs no head, and is in no index by time: nobody asks for what is below the floor by that.
UPDATE record SET id = ?2, time = ?3, seq = NULL WHERE pos = ?1;

-- name: left_over
SELECT pos FROM record WHERE pos >= ?1 AND pos < ?2 ORDER BY pos LIMIT ?3;

-- name: byte_count
SELECT ifnull(sum(length(body) + ifnull(length(meta), 0)), 0) FROM record WHERE pos >= ?1 AND pos < ?2;

-- name: first_young
-- Not one whose time is yet to come: that says nothing about its age.
SELECT pos FROM record WHERE pos BETWEEN ?1 AND ?2 AND time >= ?3 AND time <= ?4 ORDER BY pos LIMIT 1;

-- name: last_old
SELECT pos FROM record WHERE pos >= ?1 AND pos < ?2 AND time < ?3 ORDER BY pos DESC LIMIT 1;

-- name: next_is_old
-- Of the records whose time is not yet to come.
SELECT time < ?3 FROM record WHERE pos >= ?1 AND pos < ?2 AND time <= ?4 ORDER BY pos LIMIT 1;

-- name: head_at_or_before
SELECT max(pos) FROM (SELECT pos FROM record WHERE pos BETWEEN ?1 AND ?2 AND time IS NOT NULL
                      ORDER BY pos DESC LIMIT 1);

-- name: is_head
SELECT 1 WHERE EXISTS (SELECT 1 FROM record WHERE pos = ?1 AND time IS NOT NULL)
    OR NOT EXISTS (SELECT 1 FROM record WHERE pos = ?1);

-- name: raise_floor
UPDATE log SET floor = max(floor, ?2) WHERE id = ?1;

-- name: trim_records
DELETE FROM record WHERE pos >= ?1 AND pos < ?2 AND pos NOT IN (SELECT value FROM json_each(?3));

-- name: trim_once
DELETE FROM once WHERE pos >= ?1 AND pos < ?2 AND pos NOT IN (SELECT value FROM json_each(?3));

-- name: trim_outcomes
DELETE FROM outcome WHERE grp IN (SELECT id FROM grp WHERE stream = ?4) AND pos >= ?1 AND pos < ?2
AND pos NOT IN (SELECT value FROM json_each(?3));

-- name: trim_journal
-- Entries that begin past ?1 and before ?2, end at or below the floor ?3, and cover no record that is there.
DELETE FROM journal WHERE grp IN (SELECT id FROM grp WHERE stream = ?4) AND lo > ?1 AND lo < ?2 AND hi <= ?3
AND NOT EXISTS (SELECT 1 FROM record WHERE pos >= journal.lo AND pos < journal.hi);

-- name: trim_purges
-- The same for the only entries that may begin further below and reach beyond ?2.
DELETE FROM journal WHERE grp IN (SELECT id FROM grp WHERE stream = ?4) AND how = 'purged' AND lo <= ?1
AND hi > ?2 AND hi <= ?3 AND NOT EXISTS (SELECT 1 FROM record WHERE pos >= journal.lo AND pos < journal.hi);

-- Blobs (H18).

-- name: append_offloaded
-- `(values)` as in `append_rows`; what it does is in the schema: a trigger writes the references too.
INSERT INTO offloaded (log, first, last, lease, owner, task, body, meta, id, time, seq, key, digest, stamp, at)
SELECT ?1, ?4, ?5, ?2, ?3, column2, column3, column4, column5, column6, column7, column8, column9, column10, column11
FROM (values);

-- name: touch_blob
INSERT INTO blob (digest, stamp, size, touched) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (digest) WHERE doomed IS NULL DO UPDATE SET touched = max(touched, excluded.touched) RETURNING stamp;

-- name: blob
SELECT size FROM blob WHERE digest = ?1 AND stamp = ?2;

-- name: living_blob
SELECT 1 FROM blob WHERE digest = ?1 AND stamp = ?2 AND doomed IS NULL;

-- name: put_reference
-- Of an outcome. One whose blob is lost refers to nothing: whoever asks for it is told.
INSERT INTO blob_ref (digest, stamp, pos, grp, at)
SELECT digest, stamp, ?3, ?4, ?5 FROM blob WHERE digest = ?1 AND stamp = ?2 AND doomed IS NULL
ON CONFLICT DO UPDATE SET at = excluded.at;

-- name: references
-- The next ?5, those not older than ?6 as still needed. What is trimmed is deleted, but for what is parked.
SELECT digest, stamp, pos, grp,
       at >= ?6 OR iif(grp = 0,
           EXISTS (SELECT 1 FROM record WHERE pos = r.pos),
           EXISTS (SELECT 1 FROM outcome o WHERE o.grp = r.grp AND o.pos = r.pos AND substr(o.value, 17, 32) = r.digest))
FROM blob_ref r WHERE (digest, stamp, pos, grp) > (?1, ?2, ?3, ?4)
ORDER BY digest, stamp, pos, grp LIMIT ?5;

-- name: drop_reference
DELETE FROM blob_ref WHERE digest = ?1 AND stamp = ?2 AND pos = ?3 AND grp = ?4 AND at < ?5
AND NOT iif(grp = 0,
    EXISTS (SELECT 1 FROM record WHERE pos = ?3),
    EXISTS (SELECT 1 FROM outcome o WHERE o.grp = ?4 AND o.pos = ?3 AND substr(o.value, 17, 32) = ?1));

-- name: blobs
-- The next ?3, and whether each is one that nobody refers to.
SELECT digest, stamp, touched < ?4 AND doomed IS NULL
    AND NOT EXISTS (SELECT 1 FROM blob_ref r WHERE r.digest = b.digest AND r.stamp = b.stamp)
FROM blob b WHERE (digest, stamp) > (?1, ?2) ORDER BY digest, stamp LIMIT ?3;

-- name: doom_blob
UPDATE blob SET doomed = ?4 WHERE digest = ?1 AND stamp = ?2 AND doomed IS NULL AND touched < ?3
AND NOT EXISTS (SELECT 1 FROM blob_ref WHERE digest = ?1 AND stamp = ?2);

-- name: has_blobs
SELECT EXISTS (SELECT 1 FROM blob);

-- name: doomed_blobs
SELECT digest, stamp FROM blob WHERE doomed IS NOT NULL ORDER BY doomed LIMIT ?1;

-- name: forget_blob
DELETE FROM blob WHERE digest = ?1 AND stamp = ?2 AND doomed IS NOT NULL;

-- name: referred
SELECT digest, stamp, pos, grp FROM blob_ref WHERE digest = ?1 ORDER BY stamp, pos, grp;

-- Moving a store to another engine, or taking one in

-- name: mark
SELECT mark, at FROM move;

-- name: drop_mark
DELETE FROM move;

-- name: put_mark
INSERT INTO move (one, mark, at) VALUES (1, ?1, ?2)
ON CONFLICT (one) DO UPDATE SET mark = excluded.mark, at = excluded.at;

-- name: put_mark_at
UPDATE move SET at = ?1;

-- name: own_triggers
SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'moved\_%' ESCAPE '\';

-- name: own_tables
SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\';

-- name: is_leased
SELECT EXISTS (SELECT 1 FROM lease WHERE owner > 0);

-- name: log_places
SELECT id, priority, partition, floor,
       max(ifnull((SELECT max(pos) FROM record WHERE pos BETWEEN l.id << 40 AND (l.id << 40) + 1099511627775) + 1, 0), floor)
FROM log l WHERE stream = ?1 ORDER BY id;

-- name: number_given
-- The highest number that a table has given out, rows that are gone included.
SELECT max(ifnull((SELECT seq FROM sqlite_sequence WHERE name = ?1), 0), 0);

-- name: give_no_number
UPDATE sqlite_sequence SET seq = max(seq, ?2) WHERE name = ?1;

-- name: first_number
INSERT INTO sqlite_sequence (name, seq) SELECT ?1, ?2 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = ?1);

-- name: take_stream
INSERT INTO stream (id, kind, app, name, settings, created) VALUES (?, ?, ?, ?, ?, ?) RETURNING id;

-- name: take_log
INSERT INTO log (id, stream, priority, partition, floor) VALUES (?, ?, ?, ?, ?) RETURNING id;

-- name: move_floor
UPDATE log SET floor = ?2 WHERE id = ?1;

-- name: take_group
INSERT INTO grp (id, stream, app, name, kind, settings, generation, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id;

-- name: take_position
INSERT INTO position (grp, log, cursor, start, stop, priority)
SELECT ?1, id, ?3, ?4, ?5, ifnull(priority, 4) FROM log WHERE id = ?2;

-- name: take_record
INSERT INTO record (pos, task, body, meta, seq, id, time, key) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: incoming
SELECT kind, app, name FROM stream WHERE substr(app, 1, length(?1)) = ?1;

-- name: blob_rows
SELECT digest, stamp, size, touched FROM blob WHERE (digest, stamp) > (?1, ?2) AND doomed IS NULL
ORDER BY digest, stamp LIMIT ?3;

-- name: take_blob
INSERT INTO blob (digest, stamp, size, touched) VALUES (?, ?, ?, ?);

-- name: give_names
UPDATE stream SET app = substr(app, length(?1) + 1) WHERE substr(app, 1, length(?1)) = ?1;

-- name: discard_references
DELETE FROM blob_ref WHERE pos >= ?1 AND pos < ?2;

-- name: discard_records
DELETE FROM record WHERE pos IN (SELECT pos FROM record WHERE pos >= ?1 AND pos < ?2 ORDER BY pos LIMIT ?3);

-- name: drop_logs
DELETE FROM log WHERE stream = ?1;

-- name: drop_stream
DELETE FROM stream WHERE id = ?1;

-- name: run_heads
-- Where the parts of a run are, of which a transfer may have made several: ids from ?1 to ?2.
SELECT pos, id FROM record WHERE id IS NOT NULL AND id >= ?1 AND id <= ?2 ORDER BY id;

-- name: kept_for_nobody
-- Of a log that is kept elsewhere, records that no group of the stream has parked.
SELECT pos FROM record r WHERE pos >= ?1 AND pos < ?2 AND NOT EXISTS (
    SELECT 1 FROM grp g CROSS JOIN parked k ON k.grp = g.id AND k.pos = r.pos WHERE g.stream = ?3)
LIMIT ?4;

-- name: kept_by_beginning
SELECT pos FROM record WHERE id IS NULL AND seq IS NULL AND substr(meta, 1, length(?1)) = ?1 LIMIT 1;

-- name: drop_records
DELETE FROM record WHERE pos IN (SELECT value FROM json_each(?1));
