-- Instants are µs since 1970-01-01T00:00:00Z, as in the embedded store: no time zone can come between. Texts that are
-- ordered or unique compare byte by byte (COLLATE "C"), so that no locale of the server changes an answer.

-- The one sequence of changes. Every administrative write begins by drawing the next number, which locks this row until
-- it commits: numbers become visible in order. A sequence would hand them out in order and show them in any.
CREATE TABLE change_seq (
    one   SMALLINT PRIMARY KEY CHECK (one = 1),
    value BIGINT NOT NULL
);
INSERT INTO change_seq (one, value) VALUES (1, 0);

CREATE TABLE plans (
    id                 TEXT COLLATE "C" PRIMARY KEY,
    description        TEXT NOT NULL,
    usage_retention_days BIGINT,               -- NULL: for ever
    api_ops_rate_limit BIGINT NOT NULL,         -- requests per second
    end_user_quota     BIGINT NOT NULL,
    default_daily_request_limit BIGINT,        -- of a key that is created without its own; NULL: none
    limits             TEXT NOT NULL,           -- JSON: [{"count","per","max"}]
    created_at         BIGINT NOT NULL,
    updated_at         BIGINT NOT NULL,
    deleted_at         BIGINT,                  -- a tombstone, so that the feed can carry the removal
    version            BIGINT NOT NULL
);
CREATE INDEX plans_version ON plans (version);

CREATE TABLE workspaces (
    id         TEXT COLLATE "C" PRIMARY KEY,
    name       TEXT NOT NULL,
    plan_id    TEXT COLLATE "C" NOT NULL REFERENCES plans (id),
    end_users  BIGINT NOT NULL,                 -- rows of end_users, kept in the same transaction as they
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    version    BIGINT NOT NULL,
    usage_kept_from BIGINT NOT NULL DEFAULT 0,     -- no usage record before this is shown
    usage_pruned_to BIGINT NOT NULL DEFAULT 0      -- none before this is there any more
);
CREATE INDEX workspaces_version ON workspaces (version);
CREATE INDEX workspaces_plan ON workspaces (plan_id);
CREATE INDEX workspaces_age ON workspaces (created_at DESC, id);

-- The digests are columns and not a table: a node that starts reads a million keys, and one row each is read faster.
CREATE TABLE keys (
    id                  UUID PRIMARY KEY,
    workspace_id        TEXT COLLATE "C" NOT NULL REFERENCES workspaces (id),
    kind                TEXT NOT NULL,
    scopes              TEXT NOT NULL,          -- words, joined by commas
    resource_id         TEXT COLLATE "C" NOT NULL,
    name                TEXT COLLATE "C" NOT NULL,
    description         TEXT NOT NULL,
    metadata            TEXT NOT NULL,          -- JSON object
    hint                TEXT NOT NULL,
    search_text         TEXT COLLATE "C" NOT NULL,  -- name, description and hint, case folded by Keygate
    rate_limit          BIGINT NOT NULL,        -- requests per second
    rate_burst          BIGINT,
    daily_request_limit BIGINT,
    quota_limit         BIGINT,
    concurrency_limit   BIGINT,
    limits              TEXT NOT NULL,          -- JSON: [{"count","per","max"}]
    allowed_ips         TEXT NOT NULL,          -- JSON: ["10.0.0.0/8"]
    is_active           BOOLEAN NOT NULL,
    expires_at          BIGINT,
    digest              BYTEA,                  -- NULL once deleted
    pepper_version      BIGINT,
    secret_id           BIGINT,                 -- which secret it is, whatever it is hashed with
    old_digest          BYTEA,                  -- the credential before, while its grace period lasts
    old_pepper_version  BIGINT,
    old_secret_id       BIGINT,
    old_valid_until     BIGINT,
    created_by          TEXT NOT NULL,
    created_at          BIGINT NOT NULL,
    updated_at          BIGINT NOT NULL,
    deleted_at          BIGINT,                 -- a tombstone: the name is free, usage still belongs to the key
    version             BIGINT NOT NULL
);
CREATE UNIQUE INDEX keys_live_name ON keys (workspace_id, resource_id, name) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX keys_digest ON keys (digest) WHERE digest IS NOT NULL;
CREATE UNIQUE INDEX keys_old_digest ON keys (old_digest) WHERE old_digest IS NOT NULL;
CREATE INDEX keys_old_valid_until ON keys (old_valid_until) WHERE old_valid_until IS NOT NULL;
CREATE INDEX keys_version ON keys (version);
CREATE INDEX keys_age ON keys (workspace_id, created_at DESC, id DESC);

-- What each pepper looks like; the pepper itself is never here.
CREATE TABLE peppers (
    version     BIGINT PRIMARY KEY,
    check_value BYTEA NOT NULL
);

CREATE TABLE end_users (
    id           UUID PRIMARY KEY,
    workspace_id TEXT COLLATE "C" NOT NULL REFERENCES workspaces (id),
    other_id     TEXT COLLATE "C" NOT NULL,
    created_at   BIGINT NOT NULL,
    UNIQUE (workspace_id, other_id)
);
CREATE INDEX end_users_age ON end_users (workspace_id, created_at DESC, id DESC);

-- Kept when the end user comes back: a node that missed both events must still forget the id it knew.
CREATE TABLE end_user_tombstones (
    workspace_id TEXT COLLATE "C" NOT NULL,
    other_id     TEXT COLLATE "C" NOT NULL,
    version      BIGINT NOT NULL,
    PRIMARY KEY (workspace_id, other_id)
);
CREATE INDEX end_user_tombstones_version ON end_user_tombstones (version);

-- The ledger, one partition for each UTC day of `at`; Keygate makes them ahead and drops them by retention. A record's
-- instant is part of its identity, as its id is made from it, so a record is there once. No foreign keys: what happened
-- stays, whatever becomes of the key.
CREATE TABLE usage (
    id               UUID NOT NULL,
    request_id       TEXT NOT NULL,
    api_key_id       UUID NOT NULL,
    workspace_id     TEXT COLLATE "C" NOT NULL,
    at               BIGINT NOT NULL,
    method           TEXT NOT NULL,
    endpoint         TEXT COLLATE "C" NOT NULL,
    route            TEXT NOT NULL,
    status_code      BIGINT NOT NULL,
    outcome          TEXT NOT NULL,
    denial           TEXT,
    charged          BOOLEAN NOT NULL,
    degraded         BOOLEAN NOT NULL,          -- decided without the shared counters
    response_time_us BIGINT NOT NULL,
    ttfb_us          BIGINT,
    bytes_in         BIGINT NOT NULL,
    bytes_out        BIGINT NOT NULL,
    tokens_used      BIGINT NOT NULL,
    ip_address       TEXT,
    user_agent       TEXT NOT NULL,
    end_user_id      UUID,
    upstream         TEXT NOT NULL,
    node             TEXT NOT NULL,
    PRIMARY KEY (id, at)
) PARTITION BY RANGE (at);
-- The last two are what logs are filtered by: a search reads this index and not the rows.
CREATE INDEX usage_key_at ON usage (api_key_id, at DESC, id DESC) INCLUDE (status_code, endpoint);
-- Rows of days that have no partition, such as those of a clock that is years off.
CREATE TABLE usage_odd PARTITION OF usage DEFAULT;

-- Figures per subject and calendar window, fed in the transaction that inserts the rows.
CREATE TABLE usage_rollups (
    subject_kind    BIGINT NOT NULL,            -- 1: a key, 2: a workspace
    subject_id      BYTEA NOT NULL,             -- the key's 16 bytes, or the workspace's id in UTF-8
    width           BIGINT NOT NULL,            -- seconds: 60, 3600, 86400; 0: the whole life
    start           BIGINT NOT NULL,
    requests        BIGINT NOT NULL,
    denied          BIGINT NOT NULL,
    errors          BIGINT NOT NULL,
    charged         BIGINT NOT NULL,
    tokens          BIGINT NOT NULL,
    bytes_in        BIGINT NOT NULL,
    bytes_out       BIGINT NOT NULL,
    last_at         BIGINT NOT NULL,
    response_count  BIGINT NOT NULL,
    response_us_sum BIGINT NOT NULL,
    sketch          BYTEA NOT NULL,             -- src/store/rollup.rs says how it is written
    PRIMARY KEY (subject_kind, subject_id, width, start)
) WITH (fillfactor = 70);                       -- the newest windows are rewritten all the time
CREATE INDEX usage_rollups_totals ON usage_rollups (subject_kind, subject_id) WHERE width = 0;
CREATE INDEX usage_rollups_age ON usage_rollups (width, start, subject_kind, subject_id);

CREATE TABLE audit (
    id           UUID PRIMARY KEY,
    version      BIGINT NOT NULL UNIQUE,        -- of the write that the line is about: the true order of events
    at           BIGINT NOT NULL,
    platform     BOOLEAN NOT NULL,              -- about plans and workspaces themselves
    workspace_id TEXT COLLATE "C",
    subject      TEXT NOT NULL,
    role         TEXT NOT NULL,
    address      TEXT,
    request_id   TEXT,
    action       TEXT COLLATE "C" NOT NULL,
    target       TEXT COLLATE "C" NOT NULL,
    changes      TEXT NOT NULL                  -- JSON: {field: {"from", "to"}}, or the fields of what was made
);
CREATE INDEX audit_workspace ON audit (workspace_id, version DESC);
CREATE INDEX audit_platform ON audit (version DESC) WHERE platform;

-- Who runs on this store, and how far each has followed the changes. Seen by the database's own clock, which all share.
-- Not logged: it is the heartbeat of processes that are there, and comes back by itself within a second.
CREATE UNLOGGED TABLE nodes (
    boot_id UUID PRIMARY KEY,                   -- one per process: two may have one name
    name    TEXT NOT NULL,
    admin   TEXT,                               -- where its admin API listens
    reached BIGINT NOT NULL,                    -- the number of the newest change in force there
    seen_at BIGINT NOT NULL
);
