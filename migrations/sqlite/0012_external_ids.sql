-- The id of a key in another system, such as a set of files. NULL: none.
ALTER TABLE keys ADD COLUMN external_id TEXT;
CREATE UNIQUE INDEX keys_live_external_id ON keys (workspace_id, external_id)
    WHERE deleted_at IS NULL AND external_id IS NOT NULL;
