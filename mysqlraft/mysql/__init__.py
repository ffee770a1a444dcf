"""The site's server: connections, what differs between MySQL and MariaDB, preflight, the mysqlraft schema."""
