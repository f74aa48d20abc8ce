-- What is added to the limits of the workspace's plan, each until an instant: a JSON array.
ALTER TABLE workspaces ADD COLUMN grants TEXT NOT NULL DEFAULT '[]';
