from jopd.losses import Alert
from jopd.training.alerts import Alerts

ALERTS = (Alert("clamped_mass", 0.01, "raise the clamp"), Alert("truncation_rate", 0.05, "longer"))


def test_an_alert_is_said_once_and_recorded_wherever_it_holds(capsys):
    alerts = Alerts(ALERTS)
    below = {"loss": 1.0, "clamped_mass": 0.01}
    assert alerts.added(below) == below
    above = {"loss": 1.0, "clamped_mass": 0.5}
    for _ in range(2):
        assert alerts.added(above) == above | {"alerts": {"clamped_mass": "raise the clamp"}}
    said = capsys.readouterr().out
    assert said == "warning: clamped_mass is 0.5: raise the clamp\n"
