-- Creations that may be repeated: who asked for which key. A row belongs to a key that was made, and is deleted after a day.
CREATE TABLE idempotency_keys (
    id          BLOB PRIMARY KEY,           -- digest of the caller and the Idempotency-Key
    fingerprint BLOB NOT NULL,              -- digest of the request
    key_id      BLOB NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
