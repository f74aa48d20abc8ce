-- Who runs on this store, and how far each has followed the changes. Seen by the database's own clock, which all share.
-- Not logged: it is the heartbeat of processes that are there, and comes back by itself within a second.
CREATE UNLOGGED TABLE nodes (
    boot_id UUID PRIMARY KEY,                   -- one per process: two may have one name
    name    TEXT NOT NULL,
    admin   TEXT,                               -- where its admin API listens
    reached BIGINT NOT NULL,                    -- the number of the newest change in force there
    seen_at BIGINT NOT NULL
);
