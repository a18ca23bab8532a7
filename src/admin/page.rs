//! The status page: one file, which fetches `/status` and nothing else.

use std::sync::LazyLock;

use axum::http::HeaderValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

/// The page.
pub const HTML: &str = include_str!("page.html");

/// Content-Security-Policy: the page's own script and style, by their hashes, and questions to where it came from.
pub static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
        hash_of("script"),
        hash_of("style")
    );
    HeaderValue::try_from(policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
});

fn hash_of(tag: &str) -> String {
    let inside = HTML
        .split_once(&format!("<{tag}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")))
        .map_or("", |(inside, _)| inside);
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(inside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_of_one_piece() {
        for tag in ["script", "style"] {
            assert_eq!(HTML.matches(&format!("<{tag}")).count(), 1, "{tag}");
            let empty = STANDARD.encode(Sha256::digest(""));
            assert!(!hash_of(tag).contains(&empty), "{tag} is found");
        }
        for elsewhere in ["src=", "@import", "url(", "https://", "style=\""] {
            assert!(!HTML.contains(elsewhere), "{elsewhere}");
        }
        let addresses: Vec<_> = HTML.match_indices("http://").collect();
        assert!(
            addresses
                .iter()
                .all(|(at, _)| HTML[*at..].starts_with("http://www.w3.org/2000/svg")),
            "only the name of SVG"
        );
    }
}
