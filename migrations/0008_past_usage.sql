-- What requests used whose own rows are not kept any more, by key, model and day (UTC, in days since 1970).
CREATE TABLE past_usage (
    key_id            TEXT   NOT NULL,
    model             TEXT   NOT NULL,
    day               BIGINT NOT NULL,
    requests          BIGINT NOT NULL,
    prompt_tokens     BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    estimated         BIGINT NOT NULL,
    PRIMARY KEY (key_id, model, day)
);
