-- When a workspace was deleted; NULL while it is not. Its row stays, for the records that refer to it.
ALTER TABLE workspaces ADD COLUMN deleted_at INTEGER;
