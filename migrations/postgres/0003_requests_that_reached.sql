-- Requests that were not refused and reached no backend: totals of requests leave them out.
ALTER TABLE usage_rollups ADD COLUMN unreached BIGINT NOT NULL DEFAULT 0;
