//! The spec files that ship in the binary: `load("@faultbox/recipes/postgres.star", "postgres")`.

/// Each file's path below `@faultbox/` and its text.
pub const FILES: &[(&str, &str)] = &[
    (
        "recipes/dns.star",
        include_str!("../../../specs/recipes/dns.star"),
    ),
    (
        "recipes/grpc.star",
        include_str!("../../../specs/recipes/grpc.star"),
    ),
    (
        "recipes/http.star",
        include_str!("../../../specs/recipes/http.star"),
    ),
    (
        "recipes/kafka.star",
        include_str!("../../../specs/recipes/kafka.star"),
    ),
    (
        "recipes/mysql.star",
        include_str!("../../../specs/recipes/mysql.star"),
    ),
    (
        "recipes/postgres.star",
        include_str!("../../../specs/recipes/postgres.star"),
    ),
    (
        "recipes/redis.star",
        include_str!("../../../specs/recipes/redis.star"),
    ),
    (
        "recipes/udp.star",
        include_str!("../../../specs/recipes/udp.star"),
    ),
];

/// The text of a shipped file.
pub fn find(path: &str) -> Option<&'static str> {
    FILES
        .iter()
        .find(|(p, _)| *p == path)
        .map(|(_, text)| *text)
}
