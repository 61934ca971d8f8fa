"""Calls of the stores' routes on a running instance."""

FACTS = [
    {"id": "f1", "subject": "Ada", "relation": "lives_in", "object": "Lisbon", "valid_from": "2020-01-01"},
    {"id": "f2", "subject": "Lisbon", "relation": "located_in", "object": "Portugal"},
    {"id": "f3", "subject": "Ada", "relation": "owns", "object": "a goat"},
]


def post(http, path, **body):
    return http.post(path, json=body)


def ok(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()


def assert_refused(answer, status, param):
    """With that status, an error that names the parameter and says the rest."""
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    assert error["message"] and error["type"] and error["code"]


def write(http, namespace, *memories):
    return ok(post(http, "/v1/memories", namespace=namespace, memories=[*memories]))["memories"]


def generation(http, namespace, id):
    found = ok(http.get(f"/v1/memories/{id}", params={"namespace": namespace}))
    return found["statistics"]["generation"]


def tell(http, namespace, *facts):
    return write(http, namespace, *({"kind": "relational", **fact} for fact in facts))
