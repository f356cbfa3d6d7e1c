//! How long a certificate of the gateway is valid ([RFC 5280, section 4.1.2.5]), and what to tell
//! an operator about it.
//!
//! [RFC 5280, section 4.1.2.5]: https://www.rfc-editor.org/rfc/rfc5280#section-4.1.2.5

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The seconds of a day.
const DAY: i64 = 24 * 60 * 60;
/// A certificate that expires within this time is reported, unless its lifetime is short.
const NOTICE: i64 = 30 * DAY;
/// A certificate with a short lifetime is reported when only this fraction of it is left. Programs
/// that renew such certificates do it earlier.
const SHORT_LIFETIME_NOTICE: i64 = 4;

/// The period in which a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    not_before: i64,
    not_after: i64,
}

impl Validity {
    /// The validity of the first certificate of a chain; `None` if it cannot be read.
    pub(super) fn of(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
        let validity = certificate.validity();
        Some(Self {
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    }

    /// What is wrong at `now`, or soon will be, as the rest of a sentence that begins with the
    /// certificate.
    pub(super) fn problem(self, now: OffsetDateTime) -> Option<String> {
        let now = now.unix_timestamp();
        let left = self.not_after - now;
        let lifetime = self.not_after - self.not_before;
        if now < self.not_before {
            let from = date(self.not_before);
            Some(format!("is not valid before {from}"))
        } else if left < 0 {
            let since = date(self.not_after);
            Some(format!("has expired on {since}"))
        } else if left < NOTICE.min(lifetime / SHORT_LIFETIME_NOTICE) {
            let on = date(self.not_after);
            Some(format!("expires on {on}, in {} days", left / DAY))
        } else {
            None
        }
    }
}

/// The date in UTC.
fn date(timestamp: i64) -> String {
    OffsetDateTime::from_unix_timestamp(timestamp)
        .map_or_else(|_| timestamp.to_string(), |time| time.date().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(validity: (i64, i64), now: i64) -> Option<String> {
        let validity = Validity {
            not_before: validity.0 * DAY,
            not_after: validity.1 * DAY,
        };
        validity.problem(OffsetDateTime::from_unix_timestamp(now * DAY).unwrap())
    }

    #[test]
    fn a_certificate_is_reported_before_it_expires_and_afterwards() {
        let year = (100, 465);
        for (now, text) in [
            (99, Some("is not valid before 1970-04-11")),
            (100, None),
            (435, None),
            (436, Some("expires on 1971-04-11, in 29 days")),
            (465, Some("expires on 1971-04-11, in 0 days")),
            (466, Some("has expired on 1971-04-11")),
        ] {
            assert_eq!(problem(year, now).as_deref(), text, "day {now}");
        }
        let week = (100, 108);
        assert_eq!(problem(week, 106), None);
        assert!(problem(week, 107).is_some());
    }

    #[test]
    fn the_validity_is_that_of_the_first_certificate() {
        let issue = |from, until| {
            let mut params = rcgen::CertificateParams::new(["a.test".to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            params.self_signed(&key).unwrap().der().clone()
        };
        let chain = [issue(2001, 2002), issue(2003, 2004)];
        let expected = Validity {
            not_before: 978_307_200,
            not_after: 1_009_843_200,
        };
        assert_eq!(Validity::of(&chain), Some(expected));
        assert_eq!(Validity::of(&[]), None);
        let garbage = CertificateDer::from(b"no certificate".as_slice());
        assert_eq!(Validity::of(&[garbage]), None);
    }
}
