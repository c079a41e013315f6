-- Whose requests go first, which workers a key's requests may go to, and what attached servers are called.
ALTER TABLE keys ADD COLUMN priority TEXT NOT NULL DEFAULT 'normal';
ALTER TABLE keys ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE attached ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE attached ADD COLUMN weight DOUBLE PRECISION NOT NULL DEFAULT 1;
