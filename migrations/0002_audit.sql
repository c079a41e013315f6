-- Operator acts that are done and not yet in the audit journal: written by the transaction that does them, removed
-- when they are recorded.
CREATE TABLE audit_outbox (
    id    TEXT   PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    body  TEXT   NOT NULL
);
