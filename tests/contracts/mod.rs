//! One suite for each seam, run against every implementation.

mod capture;
mod scan;
mod sink;
