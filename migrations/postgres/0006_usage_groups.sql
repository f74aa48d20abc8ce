-- Tokens by kind and cost in all totals, and totals by route, model and end user.
ALTER TABLE usage_rollups
    ADD COLUMN input_tokens BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN cached_tokens BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN cache_write_tokens BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN output_tokens BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN reasoning_tokens BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN audio_tokens BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN cost_nano BIGINT NOT NULL DEFAULT 0;

CREATE TABLE usage_groups (
    workspace_id       TEXT NOT NULL,
    kind               BIGINT NOT NULL,         -- 1: a route, 2: a model, 3: an end user
    width              BIGINT NOT NULL,         -- seconds: 86400; 0: the whole life
    start              BIGINT NOT NULL,
    name               BYTEA NOT NULL,           -- of the route or model in UTF-8, or the end user's 16 bytes
    requests           BIGINT NOT NULL,
    denied             BIGINT NOT NULL,
    unreached          BIGINT NOT NULL,
    errors             BIGINT NOT NULL,
    charged            BIGINT NOT NULL,
    tokens             BIGINT NOT NULL,
    input_tokens       BIGINT NOT NULL,
    cached_tokens      BIGINT NOT NULL,
    cache_write_tokens BIGINT NOT NULL,
    output_tokens      BIGINT NOT NULL,
    reasoning_tokens   BIGINT NOT NULL,
    audio_tokens       BIGINT NOT NULL,
    cost_nano          BIGINT NOT NULL,
    bytes_in           BIGINT NOT NULL,
    bytes_out          BIGINT NOT NULL,
    last_at            BIGINT NOT NULL,
    response_count     BIGINT NOT NULL,
    response_us_sum    BIGINT NOT NULL,
    PRIMARY KEY (workspace_id, kind, width, start, name)
) WITH (fillfactor = 70);                       -- the newest windows are rewritten all the time
