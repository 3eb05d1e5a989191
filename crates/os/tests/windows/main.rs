//! Views of Windows against machines that the generator made: what it put into them is the truth.

mod common;
mod dumps;
mod hostile;
mod views;
