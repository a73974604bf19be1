-- +goose Up
-- people belong to no tenant; who may what refers to them by uid
CREATE TABLE people (
  uid      TEXT COLLATE "C" PRIMARY KEY,
  login    TEXT COLLATE "C" NOT NULL, -- name of the local account; empty: none
  name     TEXT COLLATE "C" NOT NULL, -- as shown
  email    TEXT COLLATE "C" NOT NULL, -- a mere attribute
  disabled BIGINT NOT NULL,
  created  BIGINT NOT NULL, -- Unix milliseconds, as all times here
  password TEXT COLLATE "C" NOT NULL, -- argon2id with its parameters; empty: none yet
  totp     BYTEA NOT NULL,  -- sealed secret; empty: no second factor
  trial    BYTEA NOT NULL,  -- sealed secret that no code has confirmed yet
  step     BIGINT NOT NULL  -- the newest step of time whose code was taken
);
CREATE UNIQUE INDEX people_login ON people (login) WHERE login <> '';

-- who a provider says it is: issuer and subject, never the e-mail
CREATE TABLE identities (
  issuer  TEXT COLLATE "C" NOT NULL,
  subject TEXT COLLATE "C" NOT NULL,
  person  TEXT COLLATE "C" NOT NULL,
  PRIMARY KEY (issuer, subject)
);
CREATE INDEX identities_person ON identities (person);

-- codes instead of a second factor that was lost; each goes when it is used
CREATE TABLE recovery_codes (
  person TEXT COLLATE "C" NOT NULL,
  hash   BYTEA NOT NULL,
  PRIMARY KEY (person, hash)
);

-- failed tries, by account and by address
CREATE TABLE attempts (
  subject TEXT COLLATE "C" PRIMARY KEY,
  failed  BIGINT NOT NULL,
  last    BIGINT NOT NULL
);

CREATE TABLE sessions (
  id      TEXT COLLATE "C" PRIMARY KEY,
  hash    BYTEA NOT NULL, -- SHA-256 of the secret part
  person  TEXT COLLATE "C" NOT NULL,
  how     TEXT COLLATE "C" NOT NULL, -- password, or the issuer
  groups  BYTEA NOT NULL, -- JSON list of what the issuer said
  bearer  BIGINT NOT NULL, -- 1: sent as a token, 0: as a cookie
  created BIGINT NOT NULL,
  seen    BIGINT NOT NULL,
  ends    BIGINT NOT NULL,
  address TEXT COLLATE "C" NOT NULL,
  agent   TEXT COLLATE "C" NOT NULL,
  epoch   BIGINT NOT NULL -- of the core: none outlives a restore
);
CREATE INDEX sessions_person ON sessions (person);

-- tokens that work once: to make an admin, to set a password
CREATE TABLE once (
  id      TEXT COLLATE "C" PRIMARY KEY,
  hash    BYTEA NOT NULL,
  purpose TEXT COLLATE "C" NOT NULL,
  person  TEXT COLLATE "C" NOT NULL,
  ends    BIGINT NOT NULL,
  epoch   BIGINT NOT NULL
);
