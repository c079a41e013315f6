-- What must survive a restart of the gateway. Times are Unix milliseconds. Portable: PostgreSQL takes it as it is.

-- API keys: the secret itself is nowhere, only its HMAC under the pepper in keys/pepper.
CREATE TABLE keys (
    id            TEXT   PRIMARY KEY,
    name          TEXT   NOT NULL,
    scopes        TEXT   NOT NULL,
    hmac          TEXT   NOT NULL,
    created_at_ms BIGINT NOT NULL,
    revoked_at_ms BIGINT
);

-- Single-use tokens with which a worker joins.
CREATE TABLE join_tokens (
    hmac          TEXT   PRIMARY KEY,
    worker_id     TEXT,
    expires_at_ms BIGINT NOT NULL,
    used_at_ms    BIGINT
);

-- Workers that have ever registered: the epoch only grows, and the credential lets one register again.
CREATE TABLE workers (
    id               TEXT   PRIMARY KEY,
    epoch            BIGINT NOT NULL,
    credential_hmac  TEXT   NOT NULL,
    registered_at_ms BIGINT NOT NULL
);

-- Servers that an operator attached; a server's own key lies in keys/attached/<id>.
CREATE TABLE attached (
    id             TEXT   PRIMARY KEY,
    epoch          BIGINT NOT NULL,
    url            TEXT   NOT NULL,
    models         TEXT   NOT NULL,
    slots          BIGINT NOT NULL,
    attached_at_ms BIGINT NOT NULL
);

-- Models the registry has heard of: one without a live worker answers 503, an unknown one 404.
CREATE TABLE models (
    id            TEXT   PRIMARY KEY,
    facts         TEXT   NOT NULL,
    created_at_ms BIGINT NOT NULL
);

-- The books: every admitted request, with its one outcome.
CREATE TABLE requests (
    id                TEXT   PRIMARY KEY,
    key_id            TEXT   NOT NULL,
    model             TEXT   NOT NULL,
    worker            TEXT,
    state             TEXT   NOT NULL,
    prompt_tokens     BIGINT,
    completion_tokens BIGINT,
    started_at_ms     BIGINT NOT NULL,
    ttft_ms           BIGINT,
    total_ms          BIGINT,
    error             TEXT
);

CREATE INDEX requests_by_time ON requests (started_at_ms);
CREATE INDEX requests_open ON requests (state) WHERE state IN ('queued', 'running');
