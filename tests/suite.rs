//! The test suite: one binary, one file per feature, over real sockets on ports the system chooses.
//!
//! Nothing sleeps and nothing is tried again: time is a clock that tests move, and whatever runs at
//! the same time is held and released at the simulator's barrier.
//!
//! With `WORKSPACE_GATEWAY_TEST_FAST_PATH=off` gateways start with the fast path off, but for tests that set it, and for
//! the program as a process of its own.

#![allow(unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::float_cmp)]

mod support;

mod access_log;
mod admin;
mod admin_attacks;
mod admin_status;
mod attacks;
mod budget;
mod bypass;
mod caching;
mod certificates;
mod check;
mod clients;
mod clocks;
mod coalescing;
mod commands;
mod dead_hours;
mod deploy;
mod docs;
mod edges;
mod errors;
mod event_log;
mod explained;
mod fairness;
mod fast_path;
mod fast_path_attacks;
mod faults;
mod fences;
mod flights;
mod freshness;
mod half_close;
mod headers;
mod heads;
mod health;
mod http2;
mod http2_edges;
mod invalidation;
mod isolation;
mod key_abuse;
mod key_breaker;
mod keys;
mod listeners;
mod local_failures;
mod log_target;
mod metrics;
mod model;
mod node_sdk;
mod operations;
mod outages;
mod page;
mod pass_through;
mod proxies;
mod python_sdk;
mod queueing;
mod reasons;
mod refusals;
mod reload;
mod reload_process;
mod request_directives;
mod sdk;
mod second_calls;
mod second_tier;
mod secrets;
mod serving;
mod shapes;
mod sharing;
mod signals;
mod signatures;
mod supervised;
mod table;
mod telling;
mod terraform;
mod tls;
mod tls_files;
mod tls_listener;
mod tracing;
mod trailers;
mod unshareable;
mod upgrade;
mod upstream;
mod views;
