//! One suite for each seam, run against every implementation.

mod capture;
mod plan;
mod scan;
mod sink;
