-- Prices of models, all in one row: they are replaced as a whole.
CREATE TABLE prices (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    entries    TEXT NOT NULL,                   -- JSON: [{"model","input","cached","cache_write","output","reasoning","tiers"}]
    updated_at INTEGER NOT NULL,
    version    INTEGER NOT NULL
) STRICT;
