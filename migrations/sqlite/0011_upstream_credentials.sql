-- Credentials for backends, encrypted under a key that is not in the database. A row without `sealed` is a tombstone.
CREATE TABLE upstream_credentials (
    id           BLOB PRIMARY KEY,
    upstream     TEXT NOT NULL,
    workspace_id TEXT NOT NULL,              -- '': any
    metadata     TEXT NOT NULL,              -- 'NAME=VALUE'; '': any key
    header       TEXT NOT NULL,
    scheme       TEXT NOT NULL,                 -- '': none
    key_version  INTEGER NOT NULL,
    sealed       BLOB,
    created_by   TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    version      INTEGER NOT NULL,
    UNIQUE (upstream, workspace_id, metadata)
) STRICT;
CREATE INDEX upstream_credentials_version ON upstream_credentials (version);
