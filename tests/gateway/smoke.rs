use crate::support::*;
use serde_json::json;

#[test]
fn a_request_passes() {
    let origin = Origin::start();
    let gateway = Gateway::start(&format!(
        "[[upstreams]]\nname='o'\nservers=['{}']\n[[routes]]\npath='/v1/{{rest*}}'\nupstream='o'\nscopes=['app']",
        origin.address
    ));
    let key = gateway.create_key(json!({}));
    let r = gateway.get("/v1/x", &key.secret);
    println!("{r:?}\n{}", origin.last().head);
    assert_eq!(r.status, 200);
    println!("{:#?}", gateway.wait_for_logs(&key, 1));
    println!("{:?}", gateway.get("/v1/x", "nope").fault());
}
