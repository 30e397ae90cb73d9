"""SQL of keys and owners."""

ALL_KEYS = """
SELECT key_id, owner, alias, scope, secret_hash, created_at, creator, expires_at, last_used_at
FROM keys WHERE revoked_at IS NULL
"""
ADD_KEY = """
INSERT INTO keys (key_id, owner, alias, scope, secret_hash, created_at, creator, expires_at)
VALUES (:key_id, :owner, :alias, :scope, :secret_hash, :created_at, :creator, :expires_at)
"""
REVOKE = "UPDATE keys SET revoked_at = :at WHERE key_id = :key_id AND revoked_at IS NULL"
EXPIRE = "UPDATE keys SET expires_at = :at WHERE key_id = :key_id"
USED = "UPDATE keys SET last_used_at = :at WHERE key_id = :key_id"
OWNERS = "SELECT nickname, email FROM owners ORDER BY nickname"
ADD_OWNER = "INSERT INTO owners (nickname, email, created_at) VALUES (:nickname, :email, :at)"
MASTER = "SELECT value FROM server_secrets WHERE name = 'master'"
ADD_MASTER = "INSERT OR IGNORE INTO server_secrets (name, value) VALUES ('master', ?)"
