"""Prints the dashboard's queries as recording rules, so that `promtool check rules` can parse them. Run by `make check-deploy`."""

import json
import pathlib

BOARD = pathlib.Path(__file__).resolve().parents[2] / "conf/grafana/dashboards/keygate.json"
# What Grafana puts in the place of its variables.
VARIABLES = {"$instance": ".*", "$route": ".*", "$__rate_interval": "1m", "$__range": "1h"}


def main():
    expressions = [target["expr"] for panel in json.loads(BOARD.read_text())["panels"] for target in panel.get("targets", [])]
    print("groups:\n  - name: dashboard\n    rules:")
    for number, expression in enumerate(expressions):
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        print(f"      - record: query:{number}\n        expr: {json.dumps(expression)}")


if __name__ == "__main__":
    main()
