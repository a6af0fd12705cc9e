from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("item", models.CharField(max_length=100)),
                ("parcel", models.CharField(blank=True, max_length=100)),
                ("customer_told", models.BooleanField(default=False)),
            ],
        ),
        migrations.CreateModel(
            name="UnsentEvent",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("event_id", models.CharField(max_length=64, unique=True)),
                ("kind", models.CharField(max_length=100)),
                ("body", models.JSONField()),
                ("error", models.TextField()),
            ],
        ),
    ]
