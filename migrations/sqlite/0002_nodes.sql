-- Who runs on this store, and how far it has followed the changes; here there is only one at a time.
CREATE TABLE nodes (
    boot_id BLOB PRIMARY KEY,                   -- one per process: two may have one name
    name    TEXT NOT NULL,
    admin   TEXT,                               -- where its admin API listens
    reached INTEGER NOT NULL,                   -- the number of the newest change in force there
    seen_at INTEGER NOT NULL
) STRICT;
