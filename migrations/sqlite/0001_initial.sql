-- Instants are µs since 1970-01-01T00:00:00Z. Ids that Keygate makes are UUIDv7 as 16 bytes: half the size of their text in
-- every index of the ledger, and in byte order they are in order of age. Ids that others make are text.

-- The one sequence of changes. Every administrative write draws the next number and stores it on the rows it touched.
CREATE TABLE change_seq (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    value INTEGER NOT NULL
) STRICT;
INSERT INTO change_seq (one, value) VALUES (1, 0);

CREATE TABLE plans (
    id                 TEXT PRIMARY KEY,
    description        TEXT NOT NULL,
    usage_retention_days INTEGER,               -- NULL: for ever
    api_ops_rate_limit INTEGER NOT NULL,        -- requests per second
    end_user_quota     INTEGER NOT NULL,
    default_daily_request_limit INTEGER,        -- of a key that is created without its own; NULL: none
    limits             TEXT NOT NULL,           -- JSON: [{"count","per","max"}]
    created_at         INTEGER NOT NULL,
    updated_at         INTEGER NOT NULL,
    deleted_at         INTEGER,                 -- a tombstone, so that the feed can carry the removal
    version            INTEGER NOT NULL
) STRICT;
CREATE INDEX plans_version ON plans (version);

CREATE TABLE workspaces (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    plan_id    TEXT NOT NULL REFERENCES plans (id),
    end_users  INTEGER NOT NULL,                -- rows of end_users, kept in the same transaction as they
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    usage_kept_from INTEGER NOT NULL DEFAULT 0,    -- no usage record before this is shown
    usage_pruned_to INTEGER NOT NULL DEFAULT 0     -- none before this is there any more
) STRICT;
CREATE INDEX workspaces_version ON workspaces (version);
CREATE INDEX workspaces_plan ON workspaces (plan_id);
CREATE INDEX workspaces_age ON workspaces (created_at DESC, id);

-- The digests are columns and not a table: a node that starts reads a million keys, and one row each is read faster.
CREATE TABLE keys (
    id                  BLOB PRIMARY KEY,
    workspace_id        TEXT NOT NULL REFERENCES workspaces (id),
    kind                TEXT NOT NULL,
    scopes              TEXT NOT NULL,          -- words, joined by commas
    resource_id         TEXT NOT NULL,
    name                TEXT NOT NULL,
    description         TEXT NOT NULL,
    metadata            TEXT NOT NULL,          -- JSON object
    hint                TEXT NOT NULL,
    search_text         TEXT NOT NULL,          -- name, description and hint, case folded by Keygate
    rate_limit          INTEGER NOT NULL,       -- requests per second
    rate_burst          INTEGER,
    daily_request_limit INTEGER,
    quota_limit         INTEGER,
    concurrency_limit   INTEGER,
    limits              TEXT NOT NULL,          -- JSON: [{"count","per","max"}]
    allowed_ips         TEXT NOT NULL,          -- JSON: ["10.0.0.0/8"]
    is_active           INTEGER NOT NULL CHECK (is_active IN (0, 1)),
    expires_at          INTEGER,
    digest              BLOB,                   -- NULL once deleted
    pepper_version      INTEGER,
    secret_id           INTEGER,                -- which secret it is, whatever it is hashed with
    old_digest          BLOB,                   -- the credential before, while its grace period lasts
    old_pepper_version  INTEGER,
    old_secret_id       INTEGER,
    old_valid_until     INTEGER,
    created_by          TEXT NOT NULL,
    created_at          INTEGER NOT NULL,
    updated_at          INTEGER NOT NULL,
    deleted_at          INTEGER,                -- a tombstone: the name is free, usage still belongs to the key
    version             INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX keys_live_name ON keys (workspace_id, resource_id, name) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX keys_digest ON keys (digest) WHERE digest IS NOT NULL;
CREATE UNIQUE INDEX keys_old_digest ON keys (old_digest) WHERE old_digest IS NOT NULL;
CREATE INDEX keys_old_valid_until ON keys (old_valid_until) WHERE old_valid_until IS NOT NULL;
CREATE INDEX keys_version ON keys (version);
CREATE INDEX keys_age ON keys (workspace_id, created_at DESC, id DESC);

-- What each pepper looks like; the pepper itself is never here.
CREATE TABLE peppers (
    version     INTEGER PRIMARY KEY,
    check_value BLOB NOT NULL
) STRICT;

CREATE TABLE end_users (
    id           BLOB PRIMARY KEY,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id),
    other_id     TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    UNIQUE (workspace_id, other_id)
) STRICT;
CREATE INDEX end_users_age ON end_users (workspace_id, created_at DESC, id DESC);

-- Kept when the end user comes back: a node that missed both events must still forget the id it knew.
CREATE TABLE end_user_tombstones (
    workspace_id TEXT NOT NULL,
    other_id     TEXT NOT NULL,
    version      INTEGER NOT NULL,
    PRIMARY KEY (workspace_id, other_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX end_user_tombstones_version ON end_user_tombstones (version);

-- The ledger, in the order of its ids, which is that of time. No foreign keys: what happened stays, whatever becomes of the
-- key.
CREATE TABLE usage (
    id               BLOB PRIMARY KEY,
    request_id       TEXT NOT NULL,
    api_key_id       BLOB NOT NULL,
    workspace_id     TEXT NOT NULL,
    at               INTEGER NOT NULL,
    method           TEXT NOT NULL,
    endpoint         TEXT NOT NULL,
    route            TEXT NOT NULL,
    status_code      INTEGER NOT NULL,
    outcome          TEXT NOT NULL,
    denial           TEXT,
    charged          INTEGER NOT NULL CHECK (charged IN (0, 1)),
    degraded         INTEGER NOT NULL CHECK (degraded IN (0, 1)),   -- decided without the shared counters
    response_time_us INTEGER NOT NULL,
    ttfb_us          INTEGER,
    bytes_in         INTEGER NOT NULL,
    bytes_out        INTEGER NOT NULL,
    tokens_used      INTEGER NOT NULL,
    ip_address       TEXT,
    user_agent       TEXT NOT NULL,
    end_user_id      BLOB,
    upstream         TEXT NOT NULL,
    node             TEXT NOT NULL
) STRICT, WITHOUT ROWID;
-- The last two are what logs are filtered by: a search reads this index and not the rows.
CREATE INDEX usage_key_at ON usage (api_key_id, at DESC, id DESC, status_code, endpoint);

-- Figures per subject and calendar window, fed in the transaction that inserts the rows.
CREATE TABLE usage_rollups (
    subject_kind    INTEGER NOT NULL,           -- 1: a key, 2: a workspace
    subject_id      BLOB NOT NULL,              -- the key's 16 bytes, or the workspace's id in UTF-8
    width           INTEGER NOT NULL,           -- seconds: 60, 3600, 86400; 0: the whole life
    start           INTEGER NOT NULL,
    requests        INTEGER NOT NULL,
    denied          INTEGER NOT NULL,
    errors          INTEGER NOT NULL,
    charged         INTEGER NOT NULL,
    tokens          INTEGER NOT NULL,
    bytes_in        INTEGER NOT NULL,
    bytes_out       INTEGER NOT NULL,
    last_at         INTEGER NOT NULL,
    response_count  INTEGER NOT NULL,
    response_us_sum INTEGER NOT NULL,
    sketch          BLOB NOT NULL,              -- src/store/rollup.rs says how it is written
    PRIMARY KEY (subject_kind, subject_id, width, start)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_rollups_totals ON usage_rollups (subject_kind, subject_id) WHERE width = 0;
CREATE INDEX usage_rollups_age ON usage_rollups (width, start, subject_kind, subject_id);

CREATE TABLE audit (
    id           BLOB PRIMARY KEY,
    version      INTEGER NOT NULL UNIQUE,       -- of the write that the line is about: the true order of events
    at           INTEGER NOT NULL,
    platform     INTEGER NOT NULL CHECK (platform IN (0, 1)),   -- about plans and workspaces themselves
    workspace_id TEXT,
    subject      TEXT NOT NULL,
    role         TEXT NOT NULL,
    address      TEXT,
    request_id   TEXT,
    action       TEXT NOT NULL,
    target       TEXT NOT NULL,
    changes      TEXT NOT NULL                  -- JSON: {field: {"from", "to"}}, or the fields of what was made
) STRICT;
CREATE INDEX audit_workspace ON audit (workspace_id, version DESC);
CREATE INDEX audit_platform ON audit (version DESC) WHERE platform = 1;

-- Who runs on this store, and how far it has followed the changes; here there is only one at a time.
CREATE TABLE nodes (
    boot_id BLOB PRIMARY KEY,                   -- one per process: two may have one name
    name    TEXT NOT NULL,
    admin   TEXT,                               -- where its admin API listens
    reached INTEGER NOT NULL,                   -- the number of the newest change in force there
    seen_at INTEGER NOT NULL
) STRICT;
