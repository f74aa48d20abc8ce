-- A deleted key keeps its digests for as many days as its plan says, so that the deletion can be undone.
ALTER TABLE plans ADD COLUMN deleted_keys_days INTEGER NOT NULL DEFAULT 30;    -- 0: it loses them at once
ALTER TABLE keys ADD COLUMN restored_at INTEGER;                               -- when it was deleted and came back
CREATE INDEX keys_restorable ON keys (deleted_at) WHERE deleted_at IS NOT NULL AND digest IS NOT NULL;
