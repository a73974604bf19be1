-- +goose Up
-- The cores that are there.
CREATE TABLE replicas (
  name    TEXT COLLATE "C" PRIMARY KEY,
  holder  TEXT COLLATE "C" NOT NULL,  -- this life of it
  address TEXT COLLATE "C" NOT NULL,  -- where other replicas reach its HTTPS
  expires BIGINT NOT NULL             -- Unix milliseconds by this database's clock
);

-- What one of them does at a time. The number grows with each that takes it.
CREATE TABLE leases (
  name    TEXT COLLATE "C" PRIMARY KEY,
  holder  TEXT COLLATE "C" NOT NULL,  -- "" for nobody
  fence   BIGINT NOT NULL,
  expires BIGINT NOT NULL,
  -- So that a change of the number waits for those who hold the row FOR KEY SHARE, and a
  -- renewal does not.
  UNIQUE (name, fence)
);

-- +goose Down
DROP TABLE replicas;
DROP TABLE leases;
