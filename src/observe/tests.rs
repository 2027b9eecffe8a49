//! What is made of records and mount tables.
