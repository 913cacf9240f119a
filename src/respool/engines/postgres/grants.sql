-- What a role needs that only sends calls and events, and asks for their results. `respool_role` is the role,
-- `respool_owner` who owns the schema. It may read all of the log, and add to it; it changes and removes nothing.

GRANT USAGE ON SCHEMA respool TO respool_role;
GRANT SELECT ON ALL TABLES IN SCHEMA respool TO respool_role;
GRANT INSERT ON respool.record, respool.ids, respool.blob_ref TO respool_role;
GRANT INSERT, UPDATE ON respool.blob TO respool_role;  -- UPDATE: a payload that is sent again is kept for longer
GRANT USAGE ON ALL SEQUENCES IN SCHEMA respool TO respool_role;
ALTER DEFAULT PRIVILEGES FOR ROLE respool_owner IN SCHEMA respool GRANT USAGE ON SEQUENCES TO respool_role;
