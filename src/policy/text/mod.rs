//! Texts for other programs: CSV cells, usage records in files, values outside the config file.

pub mod csv_cell;
pub mod form;
pub mod plain_value;
pub mod record_line;
pub mod url;
