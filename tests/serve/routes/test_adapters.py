"""Adapter versions and keys: who sees which, and who may set an alias."""

from fastapi import FastAPI
from fastapi.testclient import TestClient

from common import config
from models.weights.adapters import AdapterStore
from serve.access import Access
from serve.http import install_error_handlers
from serve.parts import Parts
from serve.routes import adapters


class AllFit:
    """The replicas of a model that every version fits: here only the rights of keys are tested."""

    async def check_version(self, digest):
        pass


def test_a_key_sees_the_versions_of_its_namespaces_and_only_one_of_all_sets_aliases(tmp_path, trained):
    store = AdapterStore(tmp_path / "adapters")
    digest = store.publish(trained[0], {"namespace": "b"})
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(adapters.router)
    app.state.access = Access({"a": ["a"], "b": ["b"], "all": ["*"]})
    parts = {
        "store": None,
        "engines": AllFit(),
        "embedder": None,
        "recall": None,
    }  # the others are not reached
    app.state.parts = Parts(config=config.load(env={}), adapters=store, **parts)
    requests = [
        ("GET", f"/v1/adapters/{digest}", {}),
        ("POST", f"/v1/adapters/{digest}/alias", {"json": {"alias": "best"}}),
        ("DELETE", f"/v1/adapters/{digest}", {}),
        ("DELETE", f"/v1/adapters/{digest}", {"params": {"aliases": True}}),
    ]
    told = {}
    with TestClient(app) as client:
        assert client.get("/v1/adapters").status_code == 401
        for key in ("a", "b", "all"):
            headers = {"Authorization": f"Bearer {key}"}
            listed = client.get("/v1/adapters", headers=headers).json()["adapters"]
            asked = requests if key != "all" else requests[:2]
            answers = [client.request(method, url, headers=headers, **more) for method, url, more in asked]
            told[key] = (len(listed), [answer.status_code for answer in answers])
    assert told == {"a": (0, [404, 403, 404, 404]), "b": (1, [200, 403, 409, 403]), "all": (1, [200, 200])}
    assert store.aliases() == {"latest": digest, "best": digest}
