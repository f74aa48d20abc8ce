-- What the meter of a route found out about an answer; NULL where the route has none.
ALTER TABLE usage ADD COLUMN model TEXT;
ALTER TABLE usage ADD COLUMN model_requested TEXT;
ALTER TABLE usage ADD COLUMN input_tokens INTEGER;
ALTER TABLE usage ADD COLUMN cached_tokens INTEGER;
ALTER TABLE usage ADD COLUMN cache_write_tokens INTEGER;
ALTER TABLE usage ADD COLUMN output_tokens INTEGER;
ALTER TABLE usage ADD COLUMN reasoning_tokens INTEGER;
ALTER TABLE usage ADD COLUMN audio_tokens INTEGER;
ALTER TABLE usage ADD COLUMN cost_nano INTEGER;             -- billionths of the currency unit
ALTER TABLE usage ADD COLUMN usage_source TEXT;
ALTER TABLE usage ADD COLUMN provider_request_id TEXT;
