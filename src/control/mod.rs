//! The control API: server, client, views.
