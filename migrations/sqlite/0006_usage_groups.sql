-- Tokens by kind and cost in all totals, and totals by route, model and end user.
ALTER TABLE usage_rollups ADD COLUMN input_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_rollups ADD COLUMN cached_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_rollups ADD COLUMN cache_write_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_rollups ADD COLUMN output_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_rollups ADD COLUMN reasoning_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_rollups ADD COLUMN audio_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_rollups ADD COLUMN cost_nano INTEGER NOT NULL DEFAULT 0;

CREATE TABLE usage_groups (
    workspace_id       TEXT NOT NULL,
    kind               INTEGER NOT NULL,         -- 1: a route, 2: a model, 3: an end user
    width              INTEGER NOT NULL,         -- seconds: 86400; 0: the whole life
    start              INTEGER NOT NULL,
    name               BLOB NOT NULL,           -- of the route or model in UTF-8, or the end user's 16 bytes
    requests           INTEGER NOT NULL,
    denied             INTEGER NOT NULL,
    unreached          INTEGER NOT NULL,
    errors             INTEGER NOT NULL,
    charged            INTEGER NOT NULL,
    tokens             INTEGER NOT NULL,
    input_tokens       INTEGER NOT NULL,
    cached_tokens      INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    output_tokens      INTEGER NOT NULL,
    reasoning_tokens   INTEGER NOT NULL,
    audio_tokens       INTEGER NOT NULL,
    cost_nano          INTEGER NOT NULL,
    bytes_in           INTEGER NOT NULL,
    bytes_out          INTEGER NOT NULL,
    last_at            INTEGER NOT NULL,
    response_count     INTEGER NOT NULL,
    response_us_sum    INTEGER NOT NULL,
    PRIMARY KEY (workspace_id, kind, width, start, name)
) STRICT, WITHOUT ROWID;
