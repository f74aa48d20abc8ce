-- What the meter of a route found out about an answer; NULL where the route has none. Nothing here is NOT NULL: nodes of the
-- version before copy records through a table that is like this one, without defaults.
ALTER TABLE usage
    ADD COLUMN model TEXT,
    ADD COLUMN model_requested TEXT,
    ADD COLUMN input_tokens BIGINT,
    ADD COLUMN cached_tokens BIGINT,
    ADD COLUMN cache_write_tokens BIGINT,
    ADD COLUMN output_tokens BIGINT,
    ADD COLUMN reasoning_tokens BIGINT,
    ADD COLUMN audio_tokens BIGINT,
    ADD COLUMN cost_nano BIGINT,                -- billionths of the currency unit
    ADD COLUMN usage_source TEXT,
    ADD COLUMN provider_request_id TEXT;
