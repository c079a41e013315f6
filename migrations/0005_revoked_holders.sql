-- Holders of tokens who were cut off, by the pseudonym they are known by: what was issued to them before is not taken.
CREATE TABLE revoked_holders (
    id    TEXT   PRIMARY KEY,
    at_ms BIGINT NOT NULL
);
