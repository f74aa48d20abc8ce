-- Creations that may be repeated: who asked for which key. A row belongs to a key that was made, and is deleted after a day.
CREATE TABLE idempotency_keys (
    id          BYTEA PRIMARY KEY,          -- digest of the caller and the Idempotency-Key
    fingerprint BYTEA NOT NULL,             -- digest of the request
    key_id      UUID NOT NULL,
    created_at  BIGINT NOT NULL
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
