//! What the config allows and few want: told at start and by `keygate check`.

use crate::config::Config;

/// A warning for each listener that strangers may reach.
pub(super) fn of_listeners(config: &Config) -> Vec<String> {
    let mut all = Vec::new();
    for address in config.decide.listen.iter().filter(|address| !address.ip().is_loopback()) {
        all.push(format!(
            "decide.listen: {address} is not a loopback address: whoever reaches it can spend the limits of every key, so let only \
             your proxy reach it"
        ));
    }
    let admin = config.admin.listen;
    if !admin.ip().is_loopback() && !config.admin.has_tls() {
        all.push(format!(
            "admin.listen: {admin} is not a loopback address and has no TLS: admin tokens and new secrets cross the network \
             unencrypted; set admin.certificates, or let only a proxy with TLS reach it"
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(text: &str) -> Vec<String> {
        of_listeners(&Config::parse(text, "", &[], "").expect("a config"))
    }

    #[test]
    fn an_admin_listener_for_other_machines_without_tls_is_warned_of() {
        for text in ["", "admin.listen = \"127.0.0.7:1\"", "admin.listen = \"[::1]:1\""] {
            assert_eq!(warnings(text), Vec::<String>::new(), "{text}");
        }
        for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            let plain = format!("admin.listen = \"{address}\"\n");
            let told = warnings(&plain);
            let [told] = told.as_slice() else { panic!("{told:?}") };
            assert!(told.starts_with("admin.listen: ") && told.contains(address), "{told}");
            assert_eq!(warnings(&(plain + "admin.certificates = [\"a.pem\"]")), Vec::<String>::new());
        }
    }
}
