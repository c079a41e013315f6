-- Keys: who holds one, which models, how much, until when; and which keys are one key rotated.
ALTER TABLE keys ADD COLUMN owner TEXT;
ALTER TABLE keys ADD COLUMN models TEXT NOT NULL DEFAULT '[]';
ALTER TABLE keys ADD COLUMN limits TEXT NOT NULL DEFAULT '{}';
ALTER TABLE keys ADD COLUMN trusted BIGINT NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN family TEXT NOT NULL DEFAULT '';
ALTER TABLE keys ADD COLUMN expires_at_ms BIGINT;
ALTER TABLE keys ADD COLUMN last_used_at_ms BIGINT;
UPDATE keys SET family = id;

-- Usage is summed from the books.
CREATE INDEX requests_by_key ON requests (key_id, started_at_ms);
