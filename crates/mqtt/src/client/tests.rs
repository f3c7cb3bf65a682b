//! The rules against a model server.
