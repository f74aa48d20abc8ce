-- Credentials for backends, encrypted under a key that is not in the database. A row without `sealed` is a tombstone.
CREATE TABLE upstream_credentials (
    id           UUID PRIMARY KEY,
    upstream     TEXT COLLATE "C" NOT NULL,
    workspace_id TEXT COLLATE "C" NOT NULL,              -- '': any
    metadata     TEXT COLLATE "C" NOT NULL,              -- 'NAME=VALUE'; '': any key
    header       TEXT NOT NULL,
    scheme       TEXT NOT NULL,                 -- '': none
    key_version  BIGINT NOT NULL,
    sealed       BYTEA,
    created_by   TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL,
    version      BIGINT NOT NULL,
    UNIQUE (upstream, workspace_id, metadata)
);
CREATE INDEX upstream_credentials_version ON upstream_credentials (version);
