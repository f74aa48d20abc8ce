"""Signing in to the console through a real identity provider, which a company runs: `provider.mjs`."""

import json
import secrets
import socket
import subprocess

CONFIG = """
[admin]
listen = "127.0.0.1:{port}"

[admin.oidc]
issuer = "{issuer}"
client_id = "console"
client_secret_file = "client.secret"
public_url = "{home}"
scopes = ["openid", "profile", "groups"]
groups = ["shop-admins=admin@shop", "shop-viewers=viewer@shop", "lab-admins=admin@lab"]

[proxy]
listen = ["127.0.0.1:0"]
"""


class Company:
    """A gateway, and the provider that its people sign in at."""

    def __init__(self, binary, node, package, folder):
        self.binary, self.folder = binary, folder
        # The gateway must know its own address: it is where the provider leads people back to.
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.home = f"http://127.0.0.1:{self.port}"
        secret = secrets.token_urlsafe()
        path = folder / "client.secret"
        path.touch(mode=0o600)
        path.write_text(secret)
        command = [node, package / "provider.mjs", self.home, secret]
        self.provider = subprocess.Popen(command, cwd=package, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.issuer = self.provider.stdout.readline().strip()
        assert self.issuer, "the identity provider does not start"
        (folder / "keygate.toml").write_text(CONFIG.format(port=self.port, issuer=self.issuer, home=self.home))
        checked = self.run("check", "--connect")
        assert "connected  admin.oidc.issuer" in checked, checked
        self.gateway = subprocess.Popen([binary, "run", "--config", "keygate.toml", "--ready-json"], cwd=folder, stdout=subprocess.PIPE, text=True)
        self.ready = json.loads(self.gateway.stdout.readline())

    def run(self, *words):
        done = subprocess.run([self.binary, *words, "--config", "keygate.toml"], cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def stop(self):
        self.gateway.terminate()
        assert self.gateway.wait(30) == 0, "the gateway does not stop"
        self.provider.terminate()
        self.provider.wait(30)


def sign_in(browser, who, wait):
    """From the console's form through the provider's, back to the console."""
    browser.press("#provider")
    at_provider(browser, who, wait)


def at_provider(browser, who, wait):
    wait("the provider asks who it is", lambda: browser.all("input[name=login]"))
    browser.find("input[name=login]").send_keys(who)
    browser.find("form button").click()
    # The last step leads from the console to itself, so that the session's cookie is sent.
    wait("the console is back", lambda: browser.all("header.top") and browser.driver.current_url.startswith(browser.gateway.home))


def sign_out(browser, wait):
    """From the console's button through the provider's question, back to the console."""
    browser.find(".out button").click()
    wait("the provider asks", lambda: browser.all("button[name=logout]"))
    browser.find("button[name=logout]").click()
    wait("the console is back", lambda: browser.path() == "/console/sign-in" and browser.all("#provider"))


def people(browser, wait, narrow, wide):
    """An admin, a viewer, somebody of two workspaces, and somebody of none."""
    browser.open("/console/w/shop/keys")
    assert browser.path() == "/console/sign-in" and browser.all("#token") and "localhost:" in browser.text()
    for size in [narrow, wide]:
        browser.resize(size)
        for lang in ["zh", "en"]:
            browser.press(f".prefs [name=lang][value={lang}]")
            browser.check(f"sign-in provider {lang} {size}")
    sign_in(browser, "ada", wait)
    assert browser.path() == "/console/w/shop/keys", "signing in leads to the page that was asked for"
    assert browser.find(".who").text.split("\n")[0].startswith("Ada Lovelace"), browser.find(".who").text
    browser.press("a[href$='/keys/new']")
    browser.fill("name", "made by Ada")
    browser.fill("scopes", "app")
    browser.press("main form.form button")
    assert browser.find("#secret").text
    browser.open("/console/w/shop/audit")
    assert "console.sign_in" in browser.text() and "key.create" in browser.text() and "ada" in browser.text()
    browser.check("audit provider")
    for path in ["/console/w/lab/keys", "/console/workspaces"]:
        browser.open(path)
        assert browser.find("h1").text == "Not allowed", browser.text()
        browser.log(path, allowed=[403])
    sign_out(browser, wait)
    browser.open("/console/w/shop/keys")
    assert browser.path() == "/console/sign-in", "the session is over"

    # The provider has forgotten Ada, too: it asks again.
    sign_in(browser, "vera", wait)
    assert browser.path() == "/console/w/shop/keys" and "made by Ada" in browser.text()
    assert not browser.all("a[href$='/new']"), "a viewer makes no keys"
    browser.open("/console/w/shop/audit")
    assert browser.find("h1").text == "Not allowed"
    browser.log("a viewer's audit log", allowed=[403])
    sign_out(browser, wait)

    sign_in(browser, "otto", wait)
    assert browser.path() == "/console/w/shop" and not browser.all("nav.side a[href$='/audit']")
    browser.check("overview of two")
    browser.fill_in("header", "workspace", "lab")
    browser.press(".switch button")
    assert browser.path() == "/console/w/lab" and browser.all("nav.side a[href$='/audit']"), "an admin in the other"
    browser.open("/console/w/lab/keys")
    assert "made by Ada" not in browser.text()
    sign_out(browser, wait)

    sign_in(browser, "nora", wait)
    assert "has no access" in browser.find("[role=alert]").text and "shop" not in browser.text()
    browser.log("nobody's group", allowed=[403])
    browser.check("sign-in no-group")
    # Without a session here, the provider still knows her; another account is asked for.
    browser.press("#again")
    at_provider(browser, "vera", wait)
    assert browser.find(".who").text.startswith("Vera Rubin")
    sign_out(browser, wait)


def platform_audit(browser, company):
    """What whoever runs the gateway sees of it, with a token."""
    browser.sign_in(company.run("token", "--role", "platform").strip())
    browser.open("/console/audit")
    line = next(line for line in browser.all("main tbody tr") if "console.sign_in_refused" in line.text)
    line.find_element("css selector", "summary").click()
    assert all(word in line.text for word in ["nora", "no_group"]), line.text
