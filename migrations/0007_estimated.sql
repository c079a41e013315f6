-- Whether tokens of a request are an estimate of ours: attached servers need not count any.
ALTER TABLE requests ADD COLUMN estimated BIGINT NOT NULL DEFAULT 0;
