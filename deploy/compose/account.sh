# Makes the daemon's account when a server is first initialised. The MySQL image's entry point sources this file, whose
# docker_process_sql it uses. The statements stay out of the binlog: every site has an account of its own.
# shellcheck shell=bash

password="${MYSQLRAFT_PASSWORD//\\/\\\\}"
docker_process_sql <<SQL
SET sql_log_bin = 0;
CREATE USER mysqlraft@'%' IDENTIFIED BY '${password//\'/\'\'}';
GRANT REPLICATION SLAVE, REPLICATION CLIENT, BINLOG_ADMIN, SESSION_VARIABLES_ADMIN, XA_RECOVER_ADMIN,
  SET_ANY_DEFINER, ALLOW_NONEXISTENT_DEFINER, SYSTEM_USER, PROCESS, CONNECTION_ADMIN
  ON *.* TO mysqlraft@'%';
GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, ALTER, INDEX, REFERENCES, CREATE VIEW, SHOW VIEW, TRIGGER,
  CREATE ROUTINE, ALTER ROUTINE, EXECUTE, EVENT, LOCK TABLES
  ON *.* TO mysqlraft@'%';
SQL
