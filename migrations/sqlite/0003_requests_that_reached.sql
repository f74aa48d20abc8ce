-- Requests that were not refused and reached no backend: totals of requests leave them out.
ALTER TABLE usage_rollups ADD COLUMN unreached INTEGER NOT NULL DEFAULT 0;
